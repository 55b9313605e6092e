"""Reads single rows of a cache's shards. Only the shards read last are open, so a cache may have any number of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.artifacts.sealing import RECORD
from infra.errors import WorkError

OPEN_SHARDS_MAX = 64  # an open shard keeps its footer in memory, 0.5 to 1 MiB

Version = tuple[int, int]


def version_of(folder: Path) -> Version:
    """Tells one version of a cache from the next, which takes its place under the same name."""
    status = (folder / RECORD).stat()
    return status.st_ino, status.st_mtime_ns


@dataclass(frozen=True)
class _Shard:
    file: Any
    group_ends: NDArray[np.int64]
    """Row after the last one of each row group."""


class RowReader:
    """Reads rows of shards, from any thread.

    Shards are read by calls, not mapped into memory. In random order over many shards most reads open one, and a map
    is no faster then; its pages count as memory of the process; and a file that is cut short, or a network disk that
    fails, is an error here, and the end of a process that maps it.
    """

    def __init__(self, folder: Path, version: Version, shards: list[str], rows: NDArray[np.int64]) -> None:
        """`shards` are file names in `folder`, `rows` how many rows of each the index of that version lists."""
        self._folder, self._version, self._shards, self._rows = folder, version, shards, rows
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = Lock()

    def read(self, shard: int, row: int, columns: list[str]) -> pa.Table:
        """One row, its binary values without a copy. One row group is read for it.

        Raises:
            WorkError: the shard is damaged, or the cache was changed after `version`.
        """
        with self._lock:
            try:
                opened = self._opened(shard)
                group = int(np.searchsorted(opened.group_ends, row, side="right"))
                first = int(opened.group_ends[group - 1]) if group else 0
                table = opened.file.read_row_group(group, columns=columns, use_threads=False)
            except FileNotFoundError:
                raise self._changed(
                    f"The shard {self._shards[shard]} of the latent cache {self._folder} is gone."
                ) from None
            except (pa.ArrowException, OSError) as error:
                raise self.damaged(shard, f"cannot be read: {error}") from None
        if table.num_columns != len(columns) or row - first >= len(table):
            raise self.damaged(shard, "lacks columns or rows")
        return table.slice(row - first, 1)

    def damaged(self, shard: int, what: str) -> WorkError:
        """The error for a shard that is not as it should be."""
        return WorkError(
            f"The shard {self._shards[shard]} of the latent cache {self._folder} {what}.",
            "The file is damaged, or the cache was changed while it was being read.",
            f"Start again; if it happens again, find the damage with `animateflow cache verify {self._folder}`.",
        )

    def _changed(self, found: str) -> WorkError:
        return WorkError(
            found,
            "The cache was built again, moved or removed while it was being read.",
            "Start the training again: it reads the cache as it is now.",
        )

    def _opened(self, shard: int) -> _Shard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        # with pre_buffer, which is the default, each open shard keeps the row groups that were read in memory
        file = pq.ParquetFile(self._folder / self._shards[shard], pre_buffer=False)
        if version_of(self._folder) != self._version:  # a shard of the same name may hold other rows now
            raise self._changed(f"The latent cache {self._folder} is another one than when it was opened.")
        metadata = file.metadata
        if metadata.num_rows != self._rows[shard]:
            raise self.damaged(shard, f"has {metadata.num_rows} rows; the index lists {self._rows[shard]}")
        ends = np.cumsum(
            [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)], dtype=np.int64
        )
        if len(self._open) == OPEN_SHARDS_MAX:
            self._open.popitem(last=False)[1].file.close()
        self._open[shard] = _Shard(file, ends)
        return self._open[shard]
