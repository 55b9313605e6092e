"""Videos to a latent cache. Runs on Ray Data; stopped at any point, the same call goes on with the shards that are
missing, and where nothing is missing Ray is not even started."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.shot_types import ShotType
from infra import artifacts, logs
from infra.artifacts import Artifact, Draft
from infra.config import Config, execution

if TYPE_CHECKING:
    from data_prep.sources import SourceRow

KIND = "latent-cache"

log = logs.get_logger("data_prep")


class CacheConfig(Config):
    """How videos become latents."""

    size: int = Field(256, ge=8, multiple_of=8)
    """Height and width of a clip, pixels."""
    fps: float = Field(8.0, gt=0, le=240)
    """Frames a second of a clip, taken from the video by its timestamps. 8 is what stride 4 gives at WebVid's rate."""
    stride: int | None = Field(None, ge=1)
    """Every n-th frame whatever the video's rate, in place of `fps`; 4 is the official training code's."""
    frames_min: int = Field(16, ge=1)
    """A video that gives fewer sampled frames is rejected; it is never slowed down."""
    frames_max: int = Field(64, ge=1)
    """Sampled frames kept of a longer video."""
    window: Literal["first", "random"] = "first"
    """Which frames are kept of a longer video: the first ones, or a window drawn from (seed, clip id)."""
    shot_type: ShotType = "none"
    """How the crop moves over a clip (paper sec. 4.3): reference clips for a MotionLoRA."""
    rejected_share_max: float = Field(1.0, ge=0, le=1)
    """The work fails where a larger share of the source's rows is rejected."""
    seed: int = Field(0, ge=0)
    """For `window: random`."""
    encode_batch: int = execution(16, ge=1)
    """Frames through the VAE at a time."""
    decode_seconds_max: float = execution(120.0, gt=0)
    """A video whose decoding takes longer is rejected. Seconds of work; by the clock a tenfold."""
    workers: int = execution(1, ge=1)
    """Actors, each with a VAE and a decoding process."""
    device: str = execution("auto")
    """Of the VAE: auto, cpu or cuda."""

    @model_validator(mode="after")
    def _frames_in_order(self) -> Self:
        if self.frames_max < self.frames_min:
            raise ValueError(f"frames_max {self.frames_max} is below frames_min {self.frames_min}")
        return self


def build_latent_cache(config: CacheConfig, source: Path, videos: Path | None, vae: Path, out: Path) -> Artifact:
    """The latent cache of a source's videos, encoded by the VAE in `vae` (its folder, or a pipeline's).

    Every row of the source is either cached or listed in `rejected.parquet` with its stage and reason.

    Raises:
        UserError: the source, the folder of videos or the VAE is not there or not of its kind; `out` holds a cache of
            other videos or another config.
        WorkError: more than `rejected_share_max` of the rows are rejected, or encoding stopped.
    """
    from data_prep.encode import vae_folder
    from data_prep.plan import as_input, with_hashes
    from data_prep.sources import read_source, videos_folder

    weights = vae_folder(vae)
    rows, hashes = with_hashes(read_source(source, videos))
    inputs = {"videos": as_input(source, rows, hashes), "vae": artifacts.outside(weights, "vae")}
    if done := artifacts.find(out, KIND, config, inputs):
        log.info("The latent cache %s is there already: %d clips.", out, done.counts["clips"])
        return done
    with artifacts.draft(out, KIND, config, inputs, resumable=True) as draft:
        _build(config, rows, hashes, weights, draft)
        draft.metrics["videos_folder"] = str(videos_folder(source, videos).resolve())
    return artifacts.load(out, KIND)


def _build(config: CacheConfig, rows: list[SourceRow], hashes: dict[Path, str], vae: Path, draft: Draft) -> None:
    from data_prep.chain import encode_shards
    from data_prep.finish import finish
    from data_prep.plan import accept, plan
    from data_prep.worker import WorkerSettings
    from infra.runtime import pick_device

    started = time.monotonic()
    accepted, rejections = accept(rows, draft.folder / "data_docs")
    tasks = plan(config, accepted, hashes, draft.folder)
    missing = [task for task in tasks if not task.path.exists()]
    clips, to_do = len(accepted), sum(len(task.clips) for task in missing)
    if to_do < clips:
        log.info("%d of %d clips are done from an earlier run.", clips - to_do, clips)
    device = str(pick_device(config.device))
    settings = WorkerSettings(vae, device, config.encode_batch, config.decode_seconds_max)
    frames = 0
    with logs.progress(clips, "videos to latents", "clip", initial=clips - to_do) as bar:
        for place, shard in enumerate(encode_shards(missing, settings, config.workers), 1):
            bar.update(shard["clips"] + shard["rejected"])
            frames += shard["frames"]
            log.info(_shard_line(place, len(missing), shard))
    seconds = time.monotonic() - started
    finish(config, draft, rejections, len(rows), vae)
    draft.metrics["seconds"] = round(seconds, 3)
    draft.metrics["frames_per_second"] = round(frames / seconds, 3)


def _shard_line(place: int, of: int, shard: dict[str, Any]) -> str:
    reasons = Counter(json.loads(shard["reasons"]))
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return (
        f"Shard {place}/{of} {shard['shard']}: {shard['clips']} clips, {shard['frames']} frames in "
        f"{shard['seconds']:.1f} s" + (f"; rejected: {rejected}" if rejected else "")
    )
