"""Batches read ahead by a thread: what comes, what is read, and that nothing is left running."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.train.batch import ClipBatch
from data_prep.cache.cache import LatentCache
from data_prep.cache.shards import shard_paths
from infra.errors import WorkError
from tests.data_prep.cache_files import Make, making, places, take


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return making(tmp_path)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("latent-batches")]


def wait_for(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def finished(batches: Iterator[ClipBatch]) -> None:
    batches.close()  # type: ignore[attr-defined]


def let_go(batches: Iterator[ClipBatch]) -> None:
    gc.collect()


def interrupted(batches: Iterator[ClipBatch]) -> None:
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", [finished, let_go, interrupted])
def test_the_thread_ends_with_its_iterator(make: Make, end: Callable[[Iterator[ClipBatch]], None]):
    batches = LatentCache(make(*[20] * 9)).batches(2, 16, 0, prefetch=3)
    next(batches)
    assert len(readers()) == 1
    end(batches)
    del batches
    assert wait_for(lambda: not readers())


def test_reading_in_place_starts_no_thread(make: Make):
    cache = LatentCache(make(*[20] * 9))
    batches = cache.batches(2, 16, 0, prefetch=0)
    assert places(next(batches)) == places(take(cache, 1, batch_size=2, frames=16, seed=0, prefetch=5)[0])
    assert wait_for(lambda: not readers())
    next(batches)
    assert not readers()


def test_a_program_ends_though_its_iterator_was_not_closed(make: Make):
    program = (
        "import sys; from pathlib import Path; from data_prep.cache.cache import LatentCache\n"
        "batches = LatentCache(Path(sys.argv[1])).batches(2, 16, 0); next(batches)\n"
        "print('read')"
    )
    root = Path(__file__).resolve().parents[3]
    call = [sys.executable, "-c", program, str(make(*[20] * 9))]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, cwd=root, check=False)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_no_more_is_read_ahead_than_is_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch):
    cache = LatentCache(make(*[20] * 9))
    made: list[int] = []
    whole = LatentCache._batch
    monkeypatch.setattr(LatentCache, "_batch", lambda *args: made.append(1) or whole(*args))
    batches = cache.batches(2, 16, 0, prefetch=3)
    assert not made
    for step in range(3):
        next(batches)
        assert wait_for(lambda wanted=step + 4: len(made) == wanted)  # the one in use, and three ahead
        time.sleep(0.05)
        assert len(made) == step + 4


def test_nothing_more_is_read_for_an_iterator_that_ended(make: Make, monkeypatch: pytest.MonkeyPatch):
    cache = LatentCache(make(*[20] * 9))
    made: list[int] = []
    go_on = threading.Event()
    whole = LatentCache._batch

    def second_waits(*args: Any) -> ClipBatch:
        made.append(1)
        assert len(made) == 1 or go_on.wait(20)
        return whole(*args)

    monkeypatch.setattr(LatentCache, "_batch", second_waits)
    batches = cache.batches(2, 16, 0, prefetch=4)
    next(batches)
    assert wait_for(lambda: len(made) == 2)
    batches.close()  # type: ignore[attr-defined]
    go_on.set()
    assert wait_for(lambda: not readers())
    assert len(made) == 2


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_comes_with_the_batch_it_belongs_to(make: Make, prefetch: int):
    folder = make(*[20] * 17, shard_clips=1)
    drawn = [batch.clip_ids for batch in take(LatentCache(folder), 15, batch_size=1, frames=16, seed=0)]
    cache = LatentCache(folder)
    ids = [cache.row(index).clip_id for index in range(17)]
    cache = LatentCache(folder)  # with no shard open yet
    shard_paths(folder)[ids.index(drawn[9][0])].unlink()
    batches = cache.batches(1, 16, 0, prefetch=prefetch)
    assert [next(batches).clip_ids for _ in range(9)] == drawn[:9]
    with pytest.raises(WorkError, match="is gone.*built again.*Start the training again"):
        next(batches)
    assert wait_for(lambda: not readers())
    with pytest.raises(StopIteration):
        next(batches)
