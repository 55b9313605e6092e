"""Batches of a cache whose latents say which clip and frame they are: 40 · clip + frame."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import chisquare

from data_prep.cache.cache import LatentCache
from data_prep.cache.shards import shard_paths
from infra.errors import UserError, WorkError
from tests.data_prep.cache_files import C, H, Make, W, cache_row, making, places, take, write_cache, write_shard


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return making(tmp_path)


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
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_parts_of_ranks_are_the_batch_of_one(make: Make, world_size: int, prefetch: int):
    folder = make(*[20] * 21)
    how = {"batch_size": 8, "frames": 4, "seed": 1, "start_step": 3, "prefetch": prefetch}
    parts = [take(LatentCache(folder), 5, **how, rank=rank, world_size=world_size) for rank in range(world_size)]
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
        ({"world_size": 0}, "world_size is 0"),
        ({"batch_size": 6, "world_size": 4}, "Rank 0 of 4 asks for its part of batches of 6 clips"),
        ({"rank": 2, "world_size": 2}, "Rank 2 of 2"),
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
    parts = [take(cache, 1, **how, rank=rank, world_size=4)[0].latents_BCFhw for rank in range(4)]
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


def test_a_clip_without_its_variances_is_named(make: Make):
    cache = moments(make)
    shard = shard_paths(cache.artifact.folder)[2]
    first, *others = pq.read_table(shard).to_pylist()
    write_shard(shard, [first | {"logvar": None}, *others])
    with pytest.raises(WorkError, match="holds in row 0 0 bytes of logvar"):
        take(cache, 8, batch_size=4, frames=4, seed=0, posterior="sample")
    assert len(take(cache, 8, batch_size=4, frames=4, seed=0)) == 8


def test_another_artifact_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        LatentCache(tmp_path / "none")
