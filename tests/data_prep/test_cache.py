"""Batches of a cache whose latents say which clip and frame they are: 40 · clip + frame."""

import gc
import hashlib
import itertools
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chisquare

from components.batch import BatchSource, ClipBatch
from data_prep import row_reader
from data_prep.cache import LatentCache
from data_prep.shards import shard_paths
from infra.errors import UserError, WorkError
from tests.data_prep.cache_files import C, H, W, cache_row, write_cache, write_shard

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A cache of clips with the given numbers of frames."""

    def write(*frames: int, name: str = "cache", shard_clips: int = 2, group_rows: int = 1, **changed: Any) -> Path:
        rows = [cache_row(index, count, **changed) for index, count in enumerate(frames)]
        return write_cache(tmp_path / name, rows, shard_clips, group_rows)

    return write


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


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("latent-batches")]


def wait_for(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_a_window_is_a_run_of_frames_of_one_clip(make: Make):
    cache = LatentCache(make(*[20] * 9))
    seen = [place for batch in take(cache, 40, batch_size=4, frames=16, seed=0) for place in places(batch)]
    assert {frames[0] for _, frames in seen} == {0, 1, 2, 3, 4}
    assert len({clip for clip, _ in seen}) == 8  # of nine, one is held out
    (batch,) = take(cache, 1, batch_size=4, frames=16, seed=0)
    assert tuple(batch.latents_BCFhw.shape) == (4, C, 16, H, W)
    assert batch.latents_BCFhw.dtype == torch.float32
    assert batch.caption_embeddings_BLD is None


def test_the_nth_batch_depends_on_seed_and_n_alone(make: Make):
    folder = make(*[20] * 12)
    whole = [places(batch) for batch in take(LatentCache(folder), 6, batch_size=3, frames=16, seed=5)]
    for step in range(6):
        (batch,) = take(LatentCache(folder), 1, batch_size=3, frames=16, seed=5, start_step=step)
        assert places(batch) == whole[step]
    assert whole != [places(batch) for batch in take(LatentCache(folder), 6, batch_size=3, frames=16, seed=6)]
    assert len({str(batch) for batch in whole}) == 6


def test_a_far_step_opens_no_more_shards_than_its_clips_are_in(make: Make):
    cache = LatentCache(make(*[20] * 60, shard_clips=1))
    assert places(take(cache, 1, batch_size=4, frames=16, seed=0, start_step=10**15, prefetch=0)[0])
    assert len(cache._reader._open) <= 5  # and the first one, which says the shape of all


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_parts_of_ranks_are_the_batch_of_one(make: Make, ranks: int, prefetch: int):
    folder = make(*[20] * 21)
    how = {"batch_size": 8, "frames": 4, "seed": 1, "start_step": 3, "prefetch": prefetch}
    parts = [take(LatentCache(folder), 5, **how, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step, whole in enumerate(take(LatentCache(folder), 5, **how)):
        assert [name for part in parts for name in part[step].clip_ids] == whole.clip_ids
        assert (torch.cat([part[step].latents_BCFhw for part in parts]) == whole.latents_BCFhw).all()


def test_an_epoch_draws_each_clip_once_and_windows_evenly(make: Make):
    cache = LatentCache(make(*[20] * 26, shard_clips=5, group_rows=2))
    drawn = [place for batch in take(cache, 460, batch_size=1, frames=16, seed=0) for place in places(batch)]
    for epoch in range(20):
        assert len({clip for clip, _ in drawn[epoch * 23 : epoch * 23 + 23]}) == 23
    starts = Counter(frames[0] for _, frames in drawn)
    assert chisquare([starts[first] for first in range(5)]).pvalue > 1e-3


def test_a_batch_repeats_a_clip_only_where_it_must(make: Make):
    cache = LatentCache(make(*[16] * 10))
    for batch in take(cache, 20, batch_size=8, frames=16, seed=0):
        assert len(set(batch.clip_ids)) == 8
    (batch,) = take(cache, 1, batch_size=20, frames=16, seed=0)
    assert set(Counter(batch.clip_ids).values()) == {2, 3}


@pytest.mark.parametrize(("clips", "held_out"), [(2, 1), (9, 1), (16, 2), (40, 5), (600, 64)])
def test_held_out_clips_are_the_first_by_hash_and_never_drawn(make: Make, clips: int, held_out: int):
    cache = LatentCache(make(*[1] * clips, shard_clips=50))
    by_hash = sorted((f"{clip:04d}" for clip in range(clips)), key=lambda name: hashlib.sha256(name.encode()).digest())
    assert cache.held_out(1000, 1).clip_ids == by_hash[:held_out]
    steps = -(-(clips - held_out) // 8) + 1
    drawn = {clip_id for batch in take(cache, 2 * steps, batch_size=8, frames=1, seed=0) for clip_id in batch.clip_ids}
    assert drawn <= set(by_hash[held_out:])
    assert len(drawn) > 0.9 * (clips - held_out) or clips - held_out < 8


def test_held_out_is_fixed_and_a_prefix_of_itself(make: Make):
    folder = make(*[20] * 40)
    five, two = LatentCache(folder).held_out(5, 16), LatentCache(folder).held_out(2, 16)
    assert two.clip_ids == five.clip_ids[:2]
    assert (two.latents_BCFhw == five.latents_BCFhw[:2]).all()
    assert all(frames[0] == 0 for _, frames in places(five))


def test_clips_of_one_video_are_on_one_side(tmp_path: Path):
    rows = [cache_row(index, 4, video=f"film {index // 10}") for index in range(80)]
    cache = LatentCache(write_cache(tmp_path / "cache", rows, shard_clips=7))
    held_out = cache.held_out(1000, 4).clip_ids
    drawn = {clip_id for batch in take(cache, 70, batch_size=1, frames=4, seed=0) for clip_id in batch.clip_ids}
    assert len(held_out) == 10  # an eighth of 80, which a video of ten fills exactly
    rows = rows[5:]  # now the tenth clip is inside a video, or the fifth
    cache = LatentCache(write_cache(tmp_path / "other", rows, shard_clips=7))
    held_out = cache.held_out(1000, 4).clip_ids
    assert len(held_out) in (10, 15)
    drawn = {clip_id for batch in take(cache, 65, batch_size=1, frames=4, seed=0) for clip_id in batch.clip_ids}
    assert {name.split("#")[0] for name in held_out}.isdisjoint(name.split("#")[0] for name in drawn)
    assert len(drawn) + len(held_out) == 75


def test_the_only_video_is_in_both_sets(make: Make, tmp_path: Path):
    cache = LatentCache(make(20))
    assert cache.held_out(4, 16).clip_ids == ["0000"] == take(cache, 1, batch_size=1, frames=16, seed=0)[0].clip_ids
    shots = [cache_row(index, 4, video="film") for index in range(3)]
    cache = LatentCache(write_cache(tmp_path / "shots", shots))
    drawn = [batch.clip_ids[0] for batch in take(cache, 3, batch_size=1, frames=4, seed=0)]
    assert cache.held_out(9, 4).clip_ids == sorted(drawn) == ["film#000", "film#001", "film#002"]


def test_clips_that_are_too_short_are_left_out_and_none_is_an_error(make: Make):
    cache = LatentCache(make(8, 8, 8, 20, 20, 20, 8, 20))
    ids = {i for batch in take(cache, 20, batch_size=2, frames=16, seed=0) for i in batch.clip_ids}
    assert ids <= {"0003", "0004", "0005", "0007"}
    assert len(ids) >= 3  # one may be held out
    with pytest.raises(UserError, match="has 20 frames; 24 are asked for"):
        cache.batches(2, 24, 0)  # at once, not at the first batch
    with pytest.raises(UserError, match="holds no clip"):
        LatentCache(make(name="empty")).batches(2, 16, 0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"frames": 0}, "frames is 0"),
        ({"start_step": -1}, "start_step is -1"),
        ({"prefetch": -1}, "prefetch is -1"),
        ({"ranks": 0}, "ranks is 0"),
        ({"batch_size": 6, "ranks": 4}, "Rank 0 of 4 asks for its part of batches of 6 clips"),
        ({"rank": 2, "ranks": 2}, "Rank 2 of 2"),
        ({"posterior": "sample"}, "holds the means of posteriors only"),
    ],
)
def test_what_cannot_be_is_refused_at_once(make: Make, how: dict[str, Any], says: str):
    cache = LatentCache(make(*[16] * 9))
    with pytest.raises(UserError, match=says):
        cache.batches(**({"batch_size": 2, "frames": 16, "seed": 0} | how))


def test_row_has_every_column(make: Make):
    folder = make(4, 6, 5, group_rows=2)
    cache = LatentCache(folder)
    assert (len(cache), cache.channels, cache.vae_sha256, cache.scaling_factor) == (3, C, "v" * 64, 0.5)
    clips = [cache.row(index) for index in range(3)]
    assert [clip.clip_id for clip in clips] == pa.concat_tables(map(pq.read_table, shard_paths(folder)))[
        "clip_id"
    ].to_pylist()
    clip = next(clip for clip in clips if clip.clip_id == "0002")
    assert (clip.video_id, clip.source, clip.fps, clip.cuts) == ("0002", "2.mp4", 8.0, None)
    assert clip.latents_FChw.shape == (5, C, H, W)
    assert np.array_equal(clip.latents_FChw[:, 0, 0, 0], 80 + np.arange(5))
    assert LatentCache(make(name="empty")).channels == 0
    for index in (3, -1):
        with pytest.raises(IndexError):
            cache.row(index)


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


def moments(make: Make, frames: int = 20, clips: int = 9, **where: Any) -> LatentCache:
    """A cache of posteriors of the variance 1/4."""
    logvar = np.full((frames, C, H, W), np.log(0.25), np.float16).tobytes()
    return LatentCache(make(*[frames] * clips, logvar=logvar, **where))


def test_a_draw_from_the_posterior_has_its_mean_and_variance(make: Make):
    cache = moments(make)
    how = {"batch_size": 8, "frames": 16, "seed": 3}
    means, draws = take(cache, 40, **how), take(cache, 40, **how, posterior="sample")
    eps = torch.stack([(b.latents_BCFhw - a.latents_BCFhw) / 0.5 for a, b in zip(means, draws, strict=True)])
    assert [batch.clip_ids for batch in means] == [batch.clip_ids for batch in draws]
    assert abs(eps.mean()) < 4 / eps.numel() ** 0.5
    assert abs(eps.var() - 1) < 4 * (2 / eps.numel()) ** 0.5
    assert len(eps.reshape(320, -1).unique(dim=0)) == 320  # each sample has noise of its own


def test_a_draw_from_the_posterior_depends_on_the_sample_alone(make: Make):
    cache = moments(make)
    how = {"batch_size": 8, "frames": 16, "seed": 3, "posterior": "sample"}
    whole = take(cache, 6, **how)
    (later,) = take(cache, 1, **how, start_step=5)
    assert (later.latents_BCFhw == whole[5].latents_BCFhw).all()
    parts = [take(cache, 1, **how, rank=rank, ranks=4)[0].latents_BCFhw for rank in range(4)]
    assert (torch.cat(parts) == whole[0].latents_BCFhw).all()
    (other,) = take(cache, 1, **how | {"seed": 4})
    assert (other.latents_BCFhw - other.latents_BCFhw.round() != 0).any()
    assert (cache.held_out(1, 16).latents_BCFhw % 1 == 0).all()  # means


def test_caption_embeddings_come_with_their_clips(tmp_path: Path):
    rows = []
    for index in range(9):
        embedding = np.full((5, 6), index, np.float16)
        shape = list(embedding.shape)
        rows.append(cache_row(index, 4, caption_embedding=embedding.tobytes(), caption_embedding_shape=shape))
    cache = LatentCache(write_cache(tmp_path / "cache", rows))
    for batch in [*take(cache, 5, batch_size=3, frames=4, seed=0), cache.held_out(1, 4)]:
        states_BLD = batch.caption_embeddings_BLD
        assert states_BLD is not None
        assert states_BLD.dtype == torch.float32
        assert tuple(states_BLD.shape) == (len(batch.clip_ids), 5, 6)
        expected = torch.tensor([float(clip_id) for clip_id in batch.clip_ids])[:, None, None]
        assert (states_BLD == expected).all()


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
        "import sys; from pathlib import Path; from data_prep.cache import LatentCache\n"
        "batches = LatentCache(Path(sys.argv[1])).batches(2, 16, 0); next(batches)\n"
        "print('read')"
    )
    root = Path(__file__).resolve().parents[2]
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


def test_a_clip_without_its_variances_is_named(make: Make):
    cache = moments(make)
    changed_first_row(logvar=None)(shard_paths(cache.artifact.folder)[2])
    with pytest.raises(WorkError, match="holds in row 0 0 bytes of logvar"):
        take(cache, 8, batch_size=4, frames=4, seed=0, posterior="sample")
    assert len(take(cache, 8, batch_size=4, frames=4, seed=0)) == 8


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


def test_another_artifact_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        LatentCache(tmp_path / "none")
