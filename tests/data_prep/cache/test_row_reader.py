"""Rows of shards: whole, damaged, gone, from many files and many threads; and the index that says where they are."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.cache import row_reader
from data_prep.cache.cache import LatentCache
from data_prep.cache.shards import shard_paths
from infra.errors import UserError, WorkError
from tests.data_prep.cache_files import C, H, Make, W, cache_row, making, places, take, write_cache, write_shard


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return making(tmp_path)


def test_shards_without_rows_and_row_groups_of_any_size(tmp_path: Path):
    rows = [cache_row(index, 4) for index in range(11)]
    folder = write_cache(tmp_path / "cache", rows, shard_clips=4, group_rows=3)
    expected = [LatentCache(folder).row(index).clip_id for index in range(11)]
    for name in ("shard-000000000000a-x", "shard-000000000001a-x", "shard-1-x"):  # a first, a middle, a last one
        write_shard(folder / f"{name}.parquet", [])
    index = pq.read_table(folder / "index.parquet").to_pydict()
    names = [path.name for path in shard_paths(folder)]
    index["shard"] = [[0, 2, 4][shard] for shard in index["shard"]]
    assert [name for name in names if "x" not in name] == [names[place] for place in (0, 2, 4)]
    pq.write_table(pa.table(index, pq.read_schema(folder / "index.parquet")), folder / "index.parquet")
    assert [LatentCache(folder).row(index).clip_id for index in range(11)] == expected


def test_more_shards_than_may_be_open(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_reader, "OPEN_SHARDS_MAX", 2)
    cache = LatentCache(make(*[4] * 10, shard_clips=1))
    rows = [cache.row(index) for index in range(10)]
    assert [int(row.latents_FChw[0, 0, 0, 0]) for row in rows] == [40 * int(row.clip_id) for row in rows]
    assert len(cache._reader._open) == 2


def test_iterators_and_rows_are_read_at_the_same_time(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_reader, "OPEN_SHARDS_MAX", 2)
    cache = LatentCache(make(*[20] * 40, shard_clips=2))
    both = [cache.batches(8, 16, seed) for seed in (0, 1)]
    alone = [LatentCache(cache.artifact.folder).batches(8, 16, seed, prefetch=0) for seed in (0, 1)]
    for step in range(30):
        assert cache.row(step).clip_id
        for one, other in zip(both, alone, strict=True):
            assert places(next(one)) == places(next(other))


def test_many_threads_read_one_cache(make: Make, monkeypatch: pytest.MonkeyPatch):
    class SlowFile(pq.ParquetFile):
        """Time enough for another thread to close the file, if it may."""

        def read_row_group(self, *args: Any, **how: Any) -> pa.Table:
            time.sleep(0.001)
            return super().read_row_group(*args, **how)

    monkeypatch.setattr(row_reader.pq, "ParquetFile", SlowFile)
    monkeypatch.setattr(row_reader, "OPEN_SHARDS_MAX", 1)
    cache = LatentCache(make(*[20] * 20, shard_clips=1))
    alone = [cache.row(index).clip_id for index in range(20)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda place: cache.row(place % 20).clip_id, range(200)))
    assert found == alone * 10


def test_memory_does_not_grow_with_what_was_read(tmp_path: Path):
    """Arrow's memory, with 24 shards of 2 MiB: an open shard keeps no clip."""
    latents = np.zeros((16, 4, 128, 128), np.float16)
    shape = list(latents.shape)
    rows = [cache_row(i, 16, latents=latents.tobytes(), latents_shape=shape) for i in range(24)]
    cache = LatentCache(write_cache(tmp_path / "cache", rows, shard_clips=1))
    del rows
    before = pa.total_allocated_bytes()
    for _ in take(cache, 30, batch_size=2, frames=16, seed=0, prefetch=0):
        pass
    assert len(cache._reader._open) == 22
    assert pa.total_allocated_bytes() - before < 2**20


def read_all(folder: Path, cache: LatentCache | None = None) -> None:
    cache = cache or LatentCache(folder)
    for index in range(len(cache)):
        cache.row(index)


def test_a_cache_that_was_built_again_is_not_mixed_with_the_one_before(make: Make):
    folder = make(*[20] * 9, shard_clips=1)
    cache = LatentCache(folder)
    assert cache.row(0).clip_id
    folder.rename(folder.with_name("before"))
    assert make(*[20] * 9, shard_clips=1) == folder  # names, rows and sizes are the same
    assert cache.row(0).clip_id  # its shard is open
    with pytest.raises(WorkError, match="is another one than when it was opened.*Start the training again"):
        read_all(folder, cache)
    read_all(folder)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def one_clip_less(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def foreign(path: Path) -> None:
    pq.write_table(pq.read_table(path).select(["clip_id", "caption"]), path)


def changed_first_row(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        first, *others = pq.read_table(path).to_pylist()
        write_shard(path, [first | values, *others])

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "cannot be read"),
        (one_clip_less, "has 2 rows; the index lists 3"),
        (foreign, "lacks columns or rows"),
        (changed_first_row(latents=b"\0" * 96), "holds in row 0 96 bytes of latents of the shape"),
        (changed_first_row(latents=None), "holds in row 0 0 bytes of latents"),
        (changed_first_row(latents_shape=[19, C, H, W]), "latents of shape .19, 4, 2, 3.; .20, 4, 2, 3. are expected"),
        (changed_first_row(latents_shape=[20, C, W, H]), "latents of shape .20, 4, 3, 2.; .20, 4, 2, 3. are expected"),
        (changed_first_row(latents_shape=None), "latents of shape None"),
    ],
)
def test_a_damaged_shard_is_named(make: Make, damage: Callable[[Path], None], says: str):
    folder = make(*[20] * 9, shard_clips=3)
    damage(shard_paths(folder)[1])
    with pytest.raises(WorkError, match=says) as caught:
        take(LatentCache(folder), 8, batch_size=4, frames=4, seed=0)
    assert shard_paths(folder)[1].name in str(caught.value)
    assert f"animateflow cache verify {folder}" in str(caught.value)


def test_an_index_of_another_cache_is_refused(make: Make):
    folder = make(*[20] * 9)
    index = folder / "index.parquet"
    table = pq.read_table(index)
    shard_paths(folder)[1].rename(folder / "away")
    with pytest.raises(UserError, match="names more than the 4 shards.*Build the cache again"):
        LatentCache(folder)
    (folder / "away").rename(folder / "shard-000000000001-x.parquet")
    pq.write_table(table.slice(1), index)
    with pytest.raises(UserError, match="lists 8 clips; the record tells of 9"):
        LatentCache(folder)
    pq.write_table(table.take(list(reversed(range(9)))), index)
    with pytest.raises(UserError, match="out of order"):
        LatentCache(folder)
    pq.write_table(table.select(["clip_id"]), index)
    with pytest.raises(UserError, match="cannot be read"):
        LatentCache(folder)
    index.unlink()
    with pytest.raises(UserError, match="index.parquet cannot be read"):
        LatentCache(folder)
