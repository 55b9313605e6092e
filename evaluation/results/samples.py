"""One sample of a benchmark: its animation as files, and its row of scores, measured on the file as an outsider would.

A row is written when its sample is done, so that an interrupted benchmark goes on with the next one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.clip.clip import ClipEncoder, Float
from evaluation.metrics.clip_scores import score_clip
from evaluation.metrics.motion import measure_motion
from infra.artifacts.sealing import write_json
from infra.hashing import sha256_file
from infra.video import UInt8, read_mp4, write_mp4

if TYPE_CHECKING:
    from components.animate.config import AnimationConfig

METRIC_VERSION = 1
"""Raised whenever a score would come out differently for the same file."""

CRF = 12
"""Of the H.264 files that are scored: what compression takes is taken from the scores."""
SHOWN_SIDE = 320
"""Pixels of the longer side in the report; the mp4 keeps them all."""

_TEXT = (
    "model", "method", "prompt", "full_prompt", "file", "video_sha256", "reason", "clip_model", "clip_sha256",
)  # fmt: skip
_WHOLE = ("sample", "seed", "frames", "height", "width", "metric_version")
_FLAG = ("static", "prompt_truncated")
_SCORES = (
    "text_alignment", "text_alignment_content", "domain_similarity", "domain_similarity_max", "reference_ceiling",
    "smoothness_consecutive", "smoothness_pairs",
    "dynamic_degree", "flow_median", "object_motion", "object_velocity_x", "object_velocity_y", "moving_share",
    "zoom_rate", "roll_rate", "pan_rate", "tilt_rate", "coherence",
    "frame_difference", "flicker", "duplicate_ratio", "cut_ratio", "fps",
)  # fmt: skip
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT]
    + [(name, pa.int64()) for name in _WHOLE]
    + [(name, pa.float64()) for name in _SCORES]
    + [(name, pa.bool_()) for name in _FLAG]
    + [("text_alignment_frames", pa.list_(pa.float64()))]
)
"""One row a sample. A failed sample has a `reason` and no scores; a score that is not defined is null."""


@dataclass(frozen=True)
class Sample:
    """One animation of the benchmark; `index` counts prompts and seeds and is the same for every model and method."""

    model: str
    method: str
    index: int
    prompt: str
    full_prompt: str
    seed: int

    @property
    def stem(self) -> Path:
        """Its files' place in the artifact, without suffix."""
        return Path("animations") / self.model / self.method / f"{self.index:04d}"


def write_animation(folder: Path, sample: Sample, frames_FHWC: UInt8, config: AnimationConfig) -> None:
    """Writes mp4 (what is scored), WebP (what the report shows) and, last, the JSON that says that both are whole."""
    stem = folder / sample.stem
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(stem.with_suffix(".mp4"), frames_FHWC, config.fps, crf=CRF)
    write_webp(stem.with_suffix(".webp"), frames_FHWC, config.fps)
    made = {**asdict(sample), "animation": config.model_dump(mode="json")}
    write_json(stem.with_suffix(".json"), made)


def has_animation(folder: Path, sample: Sample) -> bool:
    return (folder / sample.stem).with_suffix(".json").is_file()


def write_webp(path: Path, frames_FHWC: UInt8, fps: float) -> None:
    """A looping WebP: lossless where pixels are few and seen one by one when enlarged, else at most `SHOWN_SIDE`."""
    small = max(frames_FHWC.shape[1:3]) <= 128
    frames = [Image.fromarray(frame) for frame in frames_FHWC]
    for frame in frames:
        frame.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0,
        lossless=small, quality=80, method=1 if small else 4,
    )  # fmt: skip


def score_sample(
    folder: Path, sample: Sample, fps: float, encoder: ClipEncoder, references_KD: Float
) -> dict[str, Any]:
    """The sample's row, from its mp4 alone."""
    video = (folder / sample.stem).with_suffix(".mp4")
    frames = read_mp4(video)
    embeddings = encoder.encode_images(frames)
    clip = asdict(score_clip(embeddings, encoder.encode_text(sample.full_prompt), references_KD))
    content = float((100 * embeddings @ encoder.encode_text(sample.prompt)).mean())
    scores = {
        **clip,
        **measure_motion(frames, fps).as_row(),
        "text_alignment_content": content,
        "prompt_truncated": encoder.truncates(sample.full_prompt),
        "frames": len(frames),
        "height": frames.shape[1],
        "width": frames.shape[2],
        "fps": fps,
        "video_sha256": sha256_file(video),
    }
    return _row(sample, encoder, {name: _defined(value) for name, value in scores.items()}, reason=None)


def failed_sample(sample: Sample, encoder: ClipEncoder, reason: str) -> dict[str, Any]:
    """The row of a sample that could not be made or scored: no scores, and why."""
    return _row(sample, encoder, {}, reason)


def _row(sample: Sample, encoder: ClipEncoder, scores: dict[str, Any], reason: str | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    return (
        row
        | scores
        | {
            "model": sample.model,
            "method": sample.method,
            "sample": sample.index,
            "prompt": sample.prompt,
            "full_prompt": sample.full_prompt,
            "seed": sample.seed,
            "file": sample.stem.with_suffix(".mp4").as_posix(),
            "reason": reason,
            "clip_model": encoder.name,
            "clip_sha256": encoder.sha256,
            "metric_version": METRIC_VERSION,
        }
    )


def _defined(value: Any) -> Any:
    """None for NaN: a score that the clip does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value


def save_row(folder: Path, sample: Sample, row: dict[str, Any]) -> None:
    """Keeps the row beside the animation until the table is written."""
    path = _row_path(folder, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)


def saved_row(folder: Path, sample: Sample, encoder: ClipEncoder) -> dict[str, Any] | None:
    """The row of an interrupted run, where it still holds: same metrics, same encoder, same file, and no failure."""
    path = _row_path(folder, sample)
    video = (folder / sample.stem).with_suffix(".mp4")
    if not path.is_file() or not video.is_file():
        return None
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    expected = (METRIC_VERSION, encoder.sha256, None, sha256_file(video))
    found = tuple(row.get(name) for name in ("metric_version", "clip_sha256", "reason", "video_sha256"))
    return row if found == expected else None


def _row_path(folder: Path, sample: Sample) -> Path:
    return folder / ".rows" / sample.model / sample.method / f"{sample.index:04d}.json"


def write_scores(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The rows of a `scores.parquet`."""
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def save_references(folder: Path, images_NHWC: UInt8) -> None:
    """One PNG a reference image; the folder takes its name when all are written."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images_NHWC):
        Image.fromarray(image).save(partial / f"{index:03d}.png")
    partial.rename(folder)


def load_references(folder: Path) -> UInt8:
    """(K, H, W, 3) the reference images of one model and prompt."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
