"""Where each clip of a cache is, and how long: `index.parquet`, four bytes a clip in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.shards import shard_paths
from infra.errors import UserError

HELD_OUT_SHARE, HELD_OUT_MAX = 1 / 8, 64


@dataclass(frozen=True)
class ClipIndex:
    """The clips of a cache in the order of its shards and their rows."""

    path: Path
    shards: list[str]
    """File names, in order."""
    rows: NDArray[np.int64]
    """Number of rows of each shard; a shard may have none."""
    frames: NDArray[np.int32]
    """Number of frames of each clip."""

    def place(self, clip: int) -> tuple[int, int]:
        """Number of the shard, and of the row in it."""
        # a shard without rows starts where the next one does, and is passed over
        shard = int(np.searchsorted(self._starts, clip, side="right")) - 1
        return shard, clip - int(self._starts[shard])

    @cached_property
    def held_out(self) -> int:
        """Number of clips that no training draws: the first ones, an eighth of all, at most 64 and at least one, and
        the other clips of the last one's video. Clips are in the order of their videos' hashes: a fair sample.
        """
        least = min(len(self.frames), max(1, min(HELD_OUT_MAX, int(len(self.frames) * HELD_OUT_SHARE))))
        place, last = 0, None
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=["video_id"]):
                for video in batch["video_id"].to_pylist():
                    if place >= least and video != last:
                        return place
                    place, last = place + 1, video
        return place

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum(self.rows) - self.rows


def read_index(folder: Path, clips: int) -> ClipIndex:
    """The index of a cache that has so many clips.

    Raises:
        UserError: it is missing, damaged, or not that of the clips and shards.
    """
    path = folder / "index.parquet"
    shards = [shard.name for shard in shard_paths(folder)]
    try:
        table = pq.read_table(path, columns=["shard", "frames"])
        shard, frames = table["shard"].to_numpy(), table["frames"].to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        found = f"{path} cannot be read: {error}."
    else:
        in_order = not len(shard) or bool(shard[0] >= 0 and shard[-1] < len(shards) and (np.diff(shard) >= 0).all())
        if len(shard) == clips and in_order:
            return ClipIndex(path, shards, np.bincount(shard, minlength=len(shards)), frames)
        found = f"{path} lists {len(shard)} clips; they are not the {clips} clips of {len(shards)} shards."
    raise UserError(
        found,
        "The index says where each clip is; it is written with the cache.",
        "Build the cache again with the same command: shards that are whole are used as they are.",
    )
