"""The two rows of a latent cache on disk: a clip that is cached, and a clip that is not, with the reason.

Standard Arrow types only, so that any Parquet reader can use them. F frames, C channels, h w latents.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Stage = Literal["source", "check", "decode", "encode"]

CACHE_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("caption", pa.string()),
        ("source", pa.string()),
        ("content_sha256", pa.string()),
        ("source_fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("fps", pa.float64()),
        ("source_indices", pa.list_(pa.int64())),
        ("crop", pa.list_(pa.int64())),
        ("shot_type", pa.string()),
        ("motion", pa.float64()),
        ("latents", pa.large_binary()),
        ("latents_shape", pa.list_(pa.int64())),
        ("latents_sha256", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "source", "stage", "reason", "message")])
MANIFEST_COLUMNS = [name for name in CACHE_SCHEMA.names if name != "latents"]


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

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class CachedClip:
    """One row of the cache, its latents read."""

    clip_id: str
    caption: str
    source: str
    content_sha256: str
    source_fps: float
    source_frames: int
    fps: float
    source_indices: list[int]
    crop: list[int]
    shot_type: str
    motion: float
    latents_FChw: NDArray[np.float16]
    latents_sha256: str


def rejected_table(rejections: list[Rejection]) -> pa.Table:
    """`rejected.parquet`, in the order of clip id, stage and reason."""
    ordered = sorted(rejections, key=lambda row: (row.clip_id, row.stage, row.reason, row.source))
    return pa.Table.from_pylist([row.as_dict() for row in ordered], schema=REJECTED_SCHEMA)
