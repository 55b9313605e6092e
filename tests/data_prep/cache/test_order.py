"""The order of training samples: its arithmetic against plain Python, and its statistics against chance."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from data_prep.cache import order as order_module
from data_prep.cache.order import Order, key_for, shuffled, splitmix64

KEY = key_for("clip", 0)
UNLIKELY = 1e-3  # seeds are fixed: a test either always passes or always fails


def unsigned(values: object) -> np.ndarray:
    return np.asarray(values, dtype=np.uint64)


def shuffles(count: int, epochs: int) -> np.ndarray:
    """(epochs, count): the shuffle of each epoch."""
    places = np.tile(np.arange(count, dtype=np.uint64), epochs)
    return shuffled(places, unsigned(np.arange(epochs).repeat(count)), count, KEY).reshape(epochs, count).astype(int)


def test_splitmix64_gives_the_published_numbers():
    # of the reference C program by Sebastiano Vigna, seed 1234567
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(np.uint64(1234567), np.arange(5, dtype=np.uint64)).tolist() == published


def plain_splitmix64(seed: int, index: int) -> int:
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def plain_shuffled(place: int, epoch: int, count: int, key: int) -> int:
    """Figure 1 of Hoang, Morris and Rogaway 2012, with integers of any size."""
    epoch_key = plain_splitmix64(key, epoch)
    for turn in range(64):
        round_key = plain_splitmix64(epoch_key, turn)
        partner = ((round_key >> 32) * count // 2**32 - place) % count
        if plain_splitmix64(round_key, max(place, partner)) >> 63:
            place = partner
    return place


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 10_700_000, 2**32 - 1])
def test_the_shuffle_is_what_plain_integers_give(count: int):
    cases = [(place % count, epoch) for place in (0, 1, 6, 10**9) for epoch in (0, 1, 10**12)]
    places, epochs = unsigned([case[0] for case in cases]), unsigned([case[1] for case in cases])
    expected = [plain_shuffled(place, epoch, count, int(KEY)) for place, epoch in cases]
    assert shuffled(places, epochs, count, KEY).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 31, 32, 33, 1000])
def test_a_shuffle_holds_every_place_once(count: int):
    assert (np.sort(shuffles(count, 7), axis=1) == np.arange(count)).all()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_every_order_of_a_handful_is_as_likely(count: int):
    orders = list(itertools.permutations(range(count)))
    seen = Counter(map(tuple, shuffles(count, 40 * len(orders)).tolist()))
    assert chisquare([seen[order] for order in orders]).pvalue > UNLIKELY


@pytest.mark.parametrize("count", [33, 64, 100, 5000])
def test_where_a_place_and_its_neighbour_go_is_chance(count: int):
    epochs = 20_000
    places = unsigned([0, 1, count - 1])
    went = shuffled(np.tile(places, epochs), unsigned(np.arange(epochs).repeat(3)), count, KEY).reshape(epochs, 3)
    boxes = (went.astype(int) * 8 // count).clip(0, 7)
    expected = np.bincount(np.arange(count) * 8 // count, minlength=8) / count
    for column in boxes.T:
        assert chisquare(np.bincount(column, minlength=8), epochs * expected).pvalue > UNLIKELY
    together = np.outer(expected, expected) * count / (count - 1)
    together -= np.diag(expected / (count - 1))  # two places never go to the same one
    for other in (1, 2):
        pairs = np.bincount(boxes[:, 0] * 8 + boxes[:, other], minlength=64)
        assert chisquare(pairs, epochs * together.ravel()).pvalue > UNLIKELY


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    steps = range(
        epoch * order.epoch_samples // order.batch_size, (epoch + 1) * order.epoch_samples // order.batch_size
    )
    return np.concatenate([order.places(order.samples(step)) for step in steps])


def test_an_epoch_holds_each_clip_once_and_is_another_order_each_time():
    order = Order(clips=60, batch_size=4, seed=3)
    epochs = [epoch_of(order, epoch).tolist() for epoch in range(5)]
    assert all(sorted(places) == list(range(60)) for places in epochs)
    assert len(set(map(tuple, epochs))) == 5
    assert epochs[0] != epoch_of(Order(60, 4, seed=4), 0).tolist()


def test_what_is_left_of_an_epoch_is_not_seen_in_it():
    order = Order(clips=10, batch_size=4, seed=0)
    assert order.epoch_samples == 8
    left_out = Counter[int]()
    for epoch in range(300):
        seen = epoch_of(order, epoch).tolist()
        assert len(set(seen)) == 8
        left_out.update(set(range(10)) - set(seen))
    assert chisquare([left_out[clip] for clip in range(10)]).pvalue > UNLIKELY


def test_a_batch_larger_than_the_cache_repeats_clips_evenly():
    order = Order(clips=5, batch_size=13, seed=0)
    samples = np.concatenate([order.samples(step) for step in range(10)])
    assert samples.tolist() == list(range(130))
    assert np.bincount(order.places(samples)).tolist() == [26] * 5
    assert set(np.bincount(order.places(order.samples(0))).tolist()) == {2, 3}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_a_batch_in_order(world_size: int):
    order = Order(clips=100, batch_size=8, seed=0)
    parts = [order.samples(5, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(parts).tolist() == list(range(40, 48))


def test_windows_start_anywhere_and_do_not_depend_on_the_batch():
    small, large = Order(1000, 2, seed=1), Order(1000, 250, seed=1)
    samples = np.arange(20_000, dtype=np.uint64)
    starts = small.starts(samples, np.full(20_000, 49))
    assert chisquare(np.bincount(starts, minlength=49)).pvalue > UNLIKELY
    assert (starts == large.starts(samples, np.full(20_000, 49))).all()
    assert (starts != Order(1000, 2, seed=2).starts(samples, np.full(20_000, 49))).any()
    assert (small.starts(samples, np.ones(20_000, np.int32)) == 0).all()
    neighbours = np.bincount(starts[:-1] // 7 * 7 + starts[1:] // 7, minlength=49)
    assert chisquare(neighbours).pvalue > UNLIKELY


def test_a_far_step_takes_as_many_numbers_as_the_first(monkeypatch: pytest.MonkeyPatch):
    drawn: list[int] = []

    def counted(seed: np.ndarray, index: np.ndarray) -> np.ndarray:
        values = splitmix64(seed, index)
        drawn.append(values.size)
        return values

    monkeypatch.setattr(order_module, "splitmix64", counted)
    order = Order(clips=10_700_000, batch_size=64, seed=0)
    order.places(order.samples(0))
    near = sum(drawn)
    places = order.places(order.samples(10**15))
    assert sum(drawn) == 2 * near
    assert len(set(places.tolist())) == 64
    assert places.max() < 10_700_000
