"""Damage of every kind is found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.cache.shards import shard_paths
from data_prep.cache.verify import verify
from tests.data_prep.cache_files import cache_row, write_cache, write_shard

Make = Callable[..., Path]


@pytest.fixture
def make_cache(tmp_path: Path) -> Make:
    def make(*frames: int) -> Path:
        return write_cache(tmp_path / "cache", [cache_row(index, count) for index, count in enumerate(frames)])

    return make


def change(folder: Path, **values: object) -> None:
    """Writes other values into the first row of the first shard."""
    path = shard_paths(folder)[0]
    rows = pq.read_table(path).to_pylist()
    rows[0] |= values
    write_shard(path, rows)


def test_a_whole_cache(make_cache: Make):
    found = verify(make_cache(4, 5, 6))
    assert found.ok
    assert found.clips == 3
    assert "every row whole" in str(found)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"latents": bytes(192)}, "do not have the recorded hash"),
        ({"latents_shape": [4, 4, 2, 4]}, "is not the shape"),
        ({"source_indices": [0]}, "names 1 source frames and holds"),
        ({"video_id": "9999"}, "out of order"),
        ({"clip_id": "9999"}, "index.parquet does not list the rows"),
        ({"logvar": b"12"}, "log-variances are 2 bytes"),
    ],
)
def test_a_changed_row(make_cache: Make, values: dict[str, object], says: str):
    folder = make_cache(4, 5, 6)
    change(folder, **values)
    found = verify(folder)
    assert not found.ok
    assert says in str(found)


def test_values_that_are_no_numbers(make_cache: Make):
    import hashlib

    folder = make_cache(1, 1)
    data = np.full((1, 4, 2, 3), np.nan, dtype=np.float16).tobytes()
    change(folder, latents=data, latents_sha256=hashlib.sha256(data).hexdigest())
    assert "not finite" in str(verify(folder))


def test_a_cut_and_a_missing_shard(make_cache: Make):
    folder = make_cache(4, 5, 6)
    path = shard_paths(folder)[0]
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in str(verify(folder))
    path.unlink()
    assert "The record states 3 clips; 1 are there." in str(verify(folder))
