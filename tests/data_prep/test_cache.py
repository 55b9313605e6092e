"""Batches of a cache whose latents say which clip and frame they are: 40 · clip + frame."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.batch import BatchSource, ClipBatch
from data_prep import cache as cache_module
from data_prep.cache import LatentCache
from infra.errors import UserError

Make = Callable[..., Path]


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


def take(source: BatchSource, count: int, **how: int) -> list[ClipBatch]:
    return list(itertools.islice(source.batches(**how), count))


def test_a_window_is_a_run_of_frames_of_one_clip(make_cache: Make):
    cache = LatentCache(make_cache(*[20] * 9))
    seen = [place for batch in take(cache, 40, batch_size=4, frames=16, seed=0) for place in places(batch)]
    assert {frames[0] for _, frames in seen} == {0, 1, 2, 3, 4}
    assert len({clip for clip, _ in seen}) == 8  # of nine, one is held out
    (batch,) = take(cache, 1, batch_size=4, frames=16, seed=0)
    assert tuple(batch.latents_BCFhw.shape) == (4, 4, 16, 2, 3)
    assert str(batch.latents_BCFhw.dtype) == "torch.float32"


def test_the_nth_batch_depends_on_seed_and_n_alone(make_cache: Make):
    folder = make_cache(*[20] * 12)
    whole = [places(batch) for batch in take(LatentCache(folder), 6, batch_size=3, frames=16, seed=5)]
    later = [places(batch) for batch in take(LatentCache(folder), 2, batch_size=3, frames=16, seed=5, start_step=4)]
    assert later == whole[4:]
    assert whole != [places(batch) for batch in take(LatentCache(folder), 6, batch_size=3, frames=16, seed=6)]
    assert len({str(batch) for batch in whole}) == 6


def test_a_far_step_costs_no_more_than_the_first(make_cache: Make):
    cache = LatentCache(make_cache(20, 20, 20))
    assert places(take(cache, 1, batch_size=2, frames=16, seed=0, start_step=10**15)[0])


def test_stills_are_drawn_from_every_place(make_cache: Make):
    cache = LatentCache(make_cache(*[6] * 4))
    seen = Counter(place[1][0] for b in take(cache, 60, batch_size=3, frames=1, seed=0) for place in places(b))
    assert set(seen) == set(range(6))
    assert max(seen.values()) < 2 * min(seen.values()) + 20


def test_a_batch_repeats_a_clip_only_where_it_must(make_cache: Make):
    cache = LatentCache(make_cache(*[16] * 9))
    for batch in take(cache, 20, batch_size=8, frames=16, seed=0):
        assert len(set(batch.clip_ids)) == 8
    assert len(take(cache, 1, batch_size=20, frames=16, seed=0)[0].clip_ids) == 20


@pytest.mark.parametrize(("clips", "held_out"), [(2, 1), (9, 1), (16, 2), (40, 5)])
def test_held_out_clips_are_never_drawn(make_cache: Make, clips: int, held_out: int):
    cache = LatentCache(make_cache(*[4] * clips))
    fixed = cache.held_out(1000, 4)
    assert len(fixed.clip_ids) == held_out
    drawn = {clip_id for batch in take(cache, 60, batch_size=8, frames=4, seed=0) for clip_id in batch.clip_ids}
    assert drawn.isdisjoint(fixed.clip_ids)
    assert len(drawn) == clips - held_out


def test_held_out_is_fixed_and_a_prefix_of_itself(make_cache: Make):
    folder = make_cache(*[20] * 40)
    five, two = LatentCache(folder).held_out(5, 16), LatentCache(folder).held_out(2, 16)
    assert two.clip_ids == five.clip_ids[:2]
    assert (two.latents_BCFhw == five.latents_BCFhw[:2]).all()
    assert all(frames[0] == 0 for _, frames in places(five))
    assert five.clip_ids != sorted(five.clip_ids)  # by hash, not by name


def test_the_only_clip_is_in_both_sets(make_cache: Make):
    cache = LatentCache(make_cache(20))
    assert cache.held_out(4, 16).clip_ids == ["0000"] == take(cache, 1, batch_size=1, frames=16, seed=0)[0].clip_ids


def test_clips_that_are_too_short_are_left_out_and_none_is_an_error(make_cache: Make):
    cache = LatentCache(make_cache(8, 8, 8, 20, 20, 20, 8, 20))
    ids = {i for batch in take(cache, 20, batch_size=2, frames=16, seed=0) for i in batch.clip_ids}
    assert ids <= {"0003", "0004", "0005", "0007"}
    with pytest.raises(UserError, match="has 20 frames; 24 are asked for"):
        cache.batches(2, 24, 0)  # at once, not at the first batch
    with pytest.raises(UserError, match="holds no clip"):
        LatentCache(make_cache(name="empty")).batches(2, 16, 0)


def test_row_has_every_column(make_cache: Make):
    cache = LatentCache(make_cache(4, 6, 5))
    assert (len(cache), cache.channels, cache.vae_sha256, cache.scaling_factor) == (3, 4, "v" * 64, 0.5)
    clip = cache.row(2)
    assert (clip.clip_id, clip.source, clip.fps) == ("0002", "2.mp4", 8.0)
    assert clip.latents_FChw.shape == (5, 4, 2, 3)
    assert np.array_equal(clip.latents_FChw[:, 0, 0, 0], 80 + np.arange(5))


def test_more_shards_than_may_be_open(make_cache: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "OPEN_SHARDS_MAX", 2)
    cache = LatentCache(make_cache(*[4] * 10, shard_clips=1))
    assert [int(cache.row(index).latents_FChw[0, 0, 0, 0]) for index in range(10)] == [40 * i for i in range(10)]
    assert len(cache._open) == 2


def test_another_artifact_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        LatentCache(tmp_path / "none")
