"""The rows of a latent cache on disk: a clip that is cached, and a clip that is not, with the reason.

Standard Arrow types only, so that any Parquet reader can use them. F frames, C channels, h w latents, L D tokens and
width of a caption's embedding. The format is described in docs/latent-cache.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Stage = Literal["source", "check", "decode", "filter", "encode"]

CACHE_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("content_sha256", pa.string()),
        ("decoder", pa.string()),
        ("source_fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("source_width", pa.int64()),
        ("source_height", pa.int64()),
        ("duration", pa.float64()),
        ("fps", pa.float64()),
        ("source_indices", pa.list_(pa.int64())),
        ("crop", pa.list_(pa.int64())),
        ("shot_type", pa.string()),
        ("motion", pa.float64()),
        ("cuts", pa.int64()),
        ("flow", pa.float64()),
        ("shake", pa.float64()),
        ("brightness", pa.float64()),
        ("phash", pa.string()),
        ("text_share", pa.float64()),
        ("watermark_share", pa.float64()),
        ("caption_match", pa.float64()),
        ("latents", pa.large_binary()),
        ("latents_shape", pa.list_(pa.int64())),
        ("latents_sha256", pa.string()),
        ("logvar", pa.large_binary()),
        ("caption_embedding", pa.large_binary()),
        ("caption_embedding_shape", pa.list_(pa.int64())),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip_id", "source", "stage", "reason", "message")),
        ("value", pa.float64()),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("frames", pa.int32()),
    ]
)
CHANGES_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "change", "detail")])
BULK_COLUMNS = ("latents", "logvar", "caption_embedding")
MANIFEST_COLUMNS = [name for name in CACHE_SCHEMA.names if name not in BULK_COLUMNS]


@dataclass(frozen=True)
class Rejection:
    """A clip that is not in the cache."""

    clip_id: str
    source: str
    """The path as the source gives it, empty where it gives none."""
    stage: Stage
    reason: str
    """A short code, counted in the cache's record."""
    message: str
    """A sentence for a person."""
    value: float | None = None
    """What a filter measured."""

    def as_dict(self) -> dict[str, str | float | None]:
        return asdict(self)


@dataclass(frozen=True)
class CachedClip:
    """One row of the cache, its latents read."""

    clip_id: str
    video_id: str
    caption: str
    source: str
    content_sha256: str
    decoder: str
    source_fps: float
    source_frames: int
    source_width: int
    source_height: int
    duration: float
    fps: float
    source_indices: list[int]
    crop: list[int]
    shot_type: str
    motion: float
    cuts: int | None
    flow: float | None
    shake: float | None
    brightness: float | None
    phash: str | None
    text_share: float | None
    watermark_share: float | None
    caption_match: float | None
    latents_FChw: NDArray[np.float16]
    latents_sha256: str


def place_of(video_id: str) -> str:
    """Where a video's clips stand in the order of a cache: SHA256 of its id, in hex. The order is a shuffled one, so
    that a reader who streams the shards gets mixed clips."""
    return hashlib.sha256(video_id.encode()).hexdigest()


def rejected_table(rejections: list[Rejection]) -> pa.Table:
    """`rejected.parquet`, in the order of clip id, stage and reason."""
    ordered = sorted(rejections, key=lambda row: (row.clip_id, row.stage, row.reason, row.source))
    return pa.Table.from_pylist([row.as_dict() for row in ordered], schema=REJECTED_SCHEMA)
