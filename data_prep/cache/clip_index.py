"""The index of a cache, `index.parquet`: where each clip is and how long it is, in a few bytes a clip."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.cache.rows import INDEX_SCHEMA
from data_prep.cache.shards import PATTERN
from infra.errors import UserError

HELD_OUT_SHARE, HELD_OUT_MAX = 1 / 8, 64


@dataclass(frozen=True)
class ClipIndex:
    """The clips of a cache in the order of its shards and their rows."""

    shards: list[str]
    """File names, in order."""
    rows: NDArray[np.int64]
    """Number of rows of each shard; a shard may have none."""
    frames: NDArray[np.int32]
    """Number of frames of each clip."""
    held_out: int
    """Number of clips, the first ones, that no training draws: an eighth of all, at most 64 and at least one, and the
    other clips of the last one's video. Clips are in the order of their videos' hashes, so they are a fair sample."""

    def place(self, clip: int) -> tuple[int, int]:
        """Number of the shard, and of the row in it."""
        # a shard without rows starts where the next one does, and is passed over
        shard = int(np.searchsorted(self._starts, clip, side="right")) - 1
        return shard, clip - int(self._starts[shard])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum(self.rows) - self.rows


def read_index(folder: Path, clips: int) -> ClipIndex:
    """The index of a cache that has so many clips.

    Raises:
        UserError: it is missing, damaged, or not that of the clips and shards.
    """
    path = folder / "index.parquet"
    shards = sorted(fnmatch.filter(os.listdir(folder), PATTERN))
    rows = np.zeros(len(shards), np.int64)
    frames = np.empty(clips, np.int32)
    try:
        with pq.ParquetFile(path) as file:
            if file.schema_arrow.remove_metadata() != INDEX_SCHEMA:
                raise pa.ArrowInvalid("its columns are not those of an index")
            listed, place, last = file.metadata.num_rows, 0, 0
            for batch in file.iter_batches(columns=["shard", "frames"]) if listed == clips else ():
                shard = batch["shard"].to_numpy()
                if shard[0] < last or shard[-1] >= len(shards) or (np.diff(shard) < 0).any():
                    raise pa.ArrowInvalid(f"it is out of order, or names more than the {len(shards)} shards")
                rows += np.bincount(shard, minlength=len(shards))
                frames[place : place + len(batch)] = batch["frames"].to_numpy()
                place, last = place + len(batch), shard[-1]
            held_out = _held_out(file)
    except (pa.ArrowException, OSError) as error:
        found = f"{path} cannot be read: {error}."
    else:
        if listed == clips:
            return ClipIndex(shards, rows, frames, held_out)
        found = f"{path} lists {listed} clips; the record tells of {clips}."
    raise UserError(
        found,
        "The index says where each clip is; it is written with the cache.",
        "Build the cache again with the same command: complete shards are reused.",
    )


def _held_out(index: pq.ParquetFile) -> int:
    clips = index.metadata.num_rows
    least = min(clips, max(1, min(HELD_OUT_MAX, int(clips * HELD_OUT_SHARE))))
    place, last = 0, None
    for batch in index.iter_batches(batch_size=1024, columns=["video_id"]):
        for video in batch["video_id"].to_pylist():
            if place >= least and video != last:
                return place
            place, last = place + 1, video
    return place
