"""Finished caches written with plain pyarrow, their latents saying where they come from: 40 · clip + frame."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.train.batch import BatchSource, ClipBatch
from data_prep.cache.rows import CACHE_SCHEMA, CHANGES_SCHEMA, INDEX_SCHEMA, REJECTED_SCHEMA
from data_prep.config import CacheConfig
from infra.artifacts import artifacts

C, H, W = 4, 2, 3

Make = Callable[..., Path]


def cache_row(index: int, frames: int, video: str | None = None, **changed: Any) -> dict[str, Any]:
    """Clip `index` of the shape (frames, C, H, W); a clip of a split video names its video."""
    values = 40 * index + np.arange(frames, dtype=np.float16)
    latents = np.broadcast_to(values[:, None, None, None], (frames, C, H, W)).astype(np.float16)
    data = latents.tobytes()
    row = dict.fromkeys(CACHE_SCHEMA.names) | {
        "clip_id": f"{index:04d}" if video is None else f"{video}#{index:03d}",
        "video_id": f"{index:04d}" if video is None else video,
        "caption": f"clip {index}",
        "source": f"{index}.mp4",
        "content_sha256": "0" * 64,
        "decoder": "decord",
        "source_fps": 16.0,
        "source_frames": 2 * frames,
        "source_width": 8,
        "source_height": 8,
        "duration": frames / 8,
        "fps": 8.0,
        "source_indices": list(range(0, 2 * frames, 2)),
        "crop": [0, 0, 8, 8],
        "shot_type": "none",
        "motion": 1.0,
        "latents": data,
        "latents_shape": list(latents.shape),
        "latents_sha256": hashlib.sha256(data).hexdigest(),
    }
    return row | changed


def write_cache(folder: Path, rows: Sequence[dict[str, Any]], shard_clips: int = 2, group_rows: int = 1) -> Path:
    """The rows, in the order of a cache, `shard_clips` a shard and `group_rows` a row group, as a finished artifact."""
    ordered = sorted(rows, key=lambda row: (hashlib.sha256(row["video_id"].encode()).hexdigest(), row["clip_id"]))
    index: list[dict[str, Any]] = []
    with artifacts.draft(folder, "latent-cache", CacheConfig(size=8, frames_min=1), {}) as draft:
        for shard, first in enumerate(range(0, len(ordered), shard_clips)):
            part = ordered[first : first + shard_clips]
            write_shard(draft.folder / f"shard-{shard:012b}-0123456789abcdef.parquet", part, group_rows)
            index += [
                {
                    "clip_id": row["clip_id"],
                    "video_id": row["video_id"],
                    "shard": shard,
                    "row": place,
                    "frames": row["latents_shape"][0],
                }
                for place, row in enumerate(part)
            ]
        pq.write_table(pa.Table.from_pylist(index, INDEX_SCHEMA), draft.folder / "index.parquet")
        pq.write_table(REJECTED_SCHEMA.empty_table(), draft.folder / "rejected.parquet")
        pq.write_table(CHANGES_SCHEMA.empty_table(), draft.folder / "changes.parquet")
        frames = sum(row["latents_shape"][0] for row in ordered)
        draft.counts = {"clips": len(ordered), "rejected": 0, "frames": frames}
        draft.metrics = {"vae_sha256": "v" * 64, "scaling_factor": 0.5}
    return folder


def write_shard(path: Path, rows: Sequence[dict[str, Any]], group_rows: int = 1) -> None:
    """Writes or replaces one shard."""
    table = pa.Table.from_pylist(list(rows), CACHE_SCHEMA)
    pq.write_table(table, path, row_group_size=group_rows, use_dictionary=False, compression="none")


def making(folder: Path) -> Make:
    """Writes caches of clips with the given numbers of frames to `folder/name`."""

    def make(*frames: int, name: str = "cache", shard_clips: int = 2, group_rows: int = 1, **changed: Any) -> Path:
        rows = [cache_row(index, count, **changed) for index, count in enumerate(frames)]
        return write_cache(folder / name, rows, shard_clips, group_rows)

    return make


def places(batch: ClipBatch) -> list[tuple[int, list[int]]]:
    """Clip and frames of each window, and a check that the window is one run of frames of one clip."""
    out = []
    for window, caption, clip_id in zip(batch.latents_BCFhw, batch.captions, batch.clip_ids, strict=True):
        values = window[0, :, 0, 0].long()
        clip, frames = int(values[0]) // 40, (values % 40).tolist()
        assert (window == window[:1, :, :1, :1]).all()
        assert (clip_id, caption) == (f"{clip:04d}", f"clip {clip}")
        assert frames == list(range(frames[0], frames[0] + len(frames)))
        out.append((clip, frames))
    return out


def take(source: BatchSource, count: int, **how: Any) -> list[ClipBatch]:
    return list(itertools.islice(source.batches(**how), count))
