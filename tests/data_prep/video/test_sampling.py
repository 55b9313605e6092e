"""Sampled indices against exact arithmetic."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.video.sampling import indices_by_stride, indices_by_time, window


def nearest(times: list[Fraction], fps: Fraction) -> list[int]:
    """By looking at every frame for every target; of equally near ones the first."""
    since = [time - times[0] for time in times]
    gaps = sorted(b - a for a, b in itertools.pairwise(since))
    middle = len(gaps) // 2
    typical = (gaps[middle] if len(gaps) % 2 else (gaps[middle] + gaps[middle - 1]) / 2) if gaps else Fraction(0)
    count = int((since[-1] + typical / 2) * fps) + 1
    return [min(range(len(since)), key=lambda i: (abs(since[i] - k / fps), i)) for k in range(count)]


@pytest.mark.parametrize(
    ("rate", "frames", "fps"),
    [
        (Fraction(16), 40, 8),
        (Fraction(30), 90, 8),
        (Fraction(30000, 1001), 150, 8),
        (Fraction(25, 2), 60, 8),
        (25, 80, 24),
    ],
)
def test_constant_rates(rate: Fraction, frames: int, fps: int):
    times = [i / rate for i in range(frames)]
    assert indices_by_time(np.asarray(times, dtype=float), fps).tolist() == nearest(times, Fraction(fps))


def test_known_indices():
    assert indices_by_time(np.arange(40) / 16, 8).tolist() == list(range(0, 40, 2))
    assert indices_by_time(np.arange(60) / 30, 8).tolist() == [
        0,
        4,
        7,
        11,
        15,
        19,
        22,
        26,
        30,
        34,
        37,
        41,
        45,
        49,
        52,
        56,
    ]


def test_two_seconds_are_sixteen_frames_at_eight_a_second():
    for rate in (12.5, 16, 23.976, 24, 25, 29.97, 30, 50, 59.94, 60, 120):
        assert len(indices_by_time(np.arange(round(2 * rate)) / rate, 8)) == 16, rate


def test_a_late_first_frame_and_milliseconds_change_nothing():
    exact = np.arange(90) / 30
    assert indices_by_time(np.round(exact + 0.033, 3), 8).tolist() == indices_by_time(exact, 8).tolist()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.integers(5, 400), min_size=1, max_size=60), st.integers(1, 60))
def test_variable_rates(gaps_ms: list[int], fps: int):
    ticks = [Fraction(0)]
    for gap in gaps_ms:
        ticks.append(ticks[-1] + Fraction(gap, 1000))
    times = np.asarray(ticks, dtype=float)
    ours, exact = indices_by_time(times, fps), nearest(ticks, Fraction(fps))
    assert abs(len(ours) - len(exact)) <= 1  # a count on the very edge may round either way
    for k, (index, best) in enumerate(zip(ours.tolist(), exact, strict=False)):
        assert abs(times[index] - k / fps) <= abs(times[best] - k / fps) + 2e-3 / fps
    assert (np.diff(ours) >= 0).all()


def test_one_frame_and_none():
    assert indices_by_time(np.asarray([3.5]), 8).tolist() == [0]
    assert indices_by_time(np.zeros(0), 8).tolist() == []


def test_stride_and_window():
    assert indices_by_stride(10, 4).tolist() == [0, 4, 8]
    assert window(np.arange(10), 4).tolist() == [0, 1, 2, 3]
    assert window(np.arange(10), 4, first=5).tolist() == [5, 6, 7, 8]
