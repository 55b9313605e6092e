"""A latent cache as one HTML page: what is in it, as pictures decoded from the latents, and what is not, with reasons.

The page is one file without scripts. Captions and messages come from strangers and are escaped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from data_prep.cache.cache import LatentCache
from data_prep.cache.shards import read_manifest
from data_prep.filters.filters import Filters
from data_prep.look.pictures import animation, histogram, psnr, strip
from data_prep.sources.sources import find_video
from data_prep.video.child_process import Child, ChildDiedError, ChildRaisedError, ChildTimeoutError
from data_prep.video.decode import DecodedClip, prepare, request_for
from data_prep.video.read_video import VideoAnswer, VideoRequest, read_video
from infra.errors import UserError

if TYPE_CHECKING:
    from data_prep.cache.rows import CachedClip
    from data_prep.config import CacheConfig
    from data_prep.encode.encode import UInt8

    Reader = Child[VideoRequest, VideoAnswer]

CLIPS_SHOWN = 12
FRAMES_SHOWN = 24
STRIP_FRAMES = 8
CLIPS_IN_STATISTICS = 64
EXAMPLES_PER_REASON = 3
SOURCE_SECONDS_MAX = 60.0
DEVIATION_USUAL = (0.6, 1.6)  # of scaled latents: the factor is made so that it is 1 over the VAE's training pictures
MEAN_USUAL = 1.0
MEASURES = (
    ("flow", "Optical flow", "frame widths a second"),
    ("shake", "Shake", "jitter of the camera's path"),
    ("brightness", "Brightness", "mean luma, of 255"),
    ("text_share", "Overlaid text", "share of the picture"),
    ("watermark_share", "Standing text", "share of the picture"),
    ("caption_match", "Caption match", "100 × cosine, CLIP"),
    ("cuts", "Cuts", "in the source video"),
)


@dataclass(frozen=True)
class Card:
    """A clip of the contact sheet."""

    clip_id: str
    caption: str
    facts: str
    latents: str
    """Animation decoded from the latents."""
    source: str | None
    """Animation of the pixels that were encoded; None where the video is not here or has changed."""
    strip: str
    psnr: float | None
    """Of the decoded latents against those pixels, dB."""


def inspect_cache(folder: Path, vae: Path, out: Path) -> Path:
    """Writes the page to `out` and returns it.

    `vae` is the folder, or pipeline folder, of the VAE that encoded the cache. The source's frames are shown beside the
    decoded ones where the videos still lie where the cache was built from.

    Raises:
        UserError: `folder` is no finished latent cache, or `vae` is another VAE than its own.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from components.base.model import vae_sha256
    from data_prep.config import CacheConfig
    from data_prep.encode.encode import load_vae, vae_folder

    cache = LatentCache(folder)
    model = load_vae(vae_folder(vae), "cpu")
    if (found := vae_sha256(model)) != cache.vae_sha256:
        raise UserError(
            f"The latents of {folder} were encoded by the VAE {cache.vae_sha256[:12]}; {vae} has {found[:12]}.",
            "Another VAE decodes them to wrong colours or to noise.",
            "Pass the model that the cache was built with to --base.",
        )
    config = CacheConfig.model_validate(cache.artifact.config)
    manifest = read_manifest(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("inspect_page.html.j2").render(
        artifact=cache.artifact,
        config=config,
        cards=_cards(cache, config, model),
        charts=_charts(manifest) if len(manifest) else [],
        channels=_channels(cache),
        rejections=_rejections(folder),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _cards(cache: LatentCache, config: CacheConfig, vae: Any) -> list[Card]:
    shown = np.unique(np.linspace(0, len(cache) - 1, min(CLIPS_SHOWN, len(cache))).round().astype(int))
    reader: Reader = Child(read_video, prepare)
    try:
        return [_card(cache, int(index), config, vae, reader) for index in shown]
    finally:
        reader.close()


def _card(cache: LatentCache, index: int, config: CacheConfig, vae: Any, reader: Reader) -> Card:
    from data_prep.encode.encode import decode_latents

    clip = cache.row(index)
    decoded = decode_latents(vae, clip.latents_FChw[:FRAMES_SHOWN])
    source = _source_frames(cache.artifact.metrics["videos_root"], clip, config, reader)
    seconds = len(clip.latents_FChw) / clip.fps
    return Card(
        clip_id=clip.clip_id,
        caption=clip.caption,
        facts=f"{len(clip.latents_FChw)} frames · {seconds:.1f} s at {clip.fps:g} fps · motion {clip.motion:.1f} · "
        f"{clip.source_width}×{clip.source_height} at {clip.source_fps:.4g} fps by {clip.decoder} · "
        f"crop {clip.crop[2]} px",
        latents=animation(decoded, clip.fps),
        source=None if source is None else animation(source[:FRAMES_SHOWN], clip.fps),
        strip=strip(decoded, STRIP_FRAMES),
        psnr=None if source is None else psnr(source[:FRAMES_SHOWN], decoded),
    )


def _source_frames(root: str, clip: CachedClip, config: CacheConfig, reader: Reader) -> UInt8 | None:
    """The pixels that were encoded; None where the video is gone or is another one now."""
    file = find_video(root, clip.source)
    if file is None:
        return None
    with TemporaryDirectory(prefix="animateflow-") as scratch:
        plain = config.replace(filters=Filters(cuts=config.filters.cuts, cut_threshold=config.filters.cut_threshold))
        reader.start(VideoRequest(file, request_for(plain, clip.video_id, Path()), Path(scratch)))
        try:
            answer = reader.finish(SOURCE_SECONDS_MAX)
        except (ChildDiedError, ChildTimeoutError, ChildRaisedError):
            return None  # it could be read when the cache was built: this machine differs
    if answer.content_sha256 != clip.content_sha256:
        return None
    same = [
        found.frames_FHWC
        for found in answer.clips
        if isinstance(found, DecodedClip) and found.source_indices == clip.source_indices
    ]
    return same[0] if same else None


def _charts(manifest: Any) -> list[dict[str, str]]:
    frames = np.asarray([shape[0] for shape in manifest["latents_shape"].to_pylist()], dtype=np.float64)
    words = [float(len(caption.split())) for caption in manifest["caption"].to_pylist()]
    series = (
        ("Clip length", "s", frames / manifest["fps"].to_numpy()),
        ("Source frame rate", "fps", manifest["source_fps"].to_numpy()),
        ("Motion", "of 255, mean change of a pixel a frame", manifest["motion"].to_numpy()),
        ("Caption length", "words", np.asarray(words)),
    )
    return [
        {
            "title": title,
            "unit": unit,
            "svg": histogram(values),
            "low": f"{values.min():.3g}",
            "median": f"{np.median(values):.3g}",
            "high": f"{values.max():.3g}",
        }
        for title, unit, values in [*series, *_measured(manifest)]
    ]


def _measured(manifest: Any) -> list[tuple[str, str, Any]]:
    """What filters measured, where they were on."""
    values = ((title, unit, manifest[name].drop_null().to_numpy()) for name, title, unit in MEASURES)
    return [(title, unit, measured.astype(np.float64)) for title, unit, measured in values if len(measured)]


def _channels(cache: LatentCache) -> list[dict[str, Any]]:
    """Mean, deviation, range and distribution of each latent channel over some clips, scaled as a trainer sees them,
    and whether they are what the scaling factor is there to make them: about 0 and 1."""
    if not len(cache):
        return []
    shown = np.unique(np.linspace(0, len(cache) - 1, min(CLIPS_IN_STATISTICS, len(cache))).round().astype(int))
    values_CN = np.concatenate(
        [cache.row(int(i)).latents_FChw.transpose(1, 0, 2, 3).reshape(cache.channels, -1) for i in shown], axis=1
    ).astype(np.float32)
    values_CN *= cache.scaling_factor
    low, high = DEVIATION_USUAL
    return [
        {
            "mean": float(v.mean()),
            "deviation": float(v.std()),
            "low": float(v.min()),
            "high": float(v.max()),
            "usual": abs(float(v.mean())) <= MEAN_USUAL and low <= float(v.std()) <= high,
            "svg": histogram(v, normal=True),
        }
        for v in values_CN
    ]


def _rejections(folder: Path) -> list[dict[str, Any]]:
    """By stage and reason, the most frequent first, with some examples each."""
    rows = pq.read_table(folder / "rejected.parquet").to_pylist()
    counts = Counter((row["stage"], row["reason"]) for row in rows)
    return [
        {
            "stage": stage,
            "reason": reason,
            "count": count,
            "examples": [row for row in rows if (row["stage"], row["reason"]) == (stage, reason)][:EXAMPLES_PER_REASON],
        }
        for (stage, reason), count in counts.most_common()
    ]
