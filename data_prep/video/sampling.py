"""Which frames of a video become a clip: by time, or by a fixed stride."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Seconds = NDArray[np.float64]

SLACK = 1e-3  # of a frame of the clip: container times are rounded to milliseconds or coarser ticks


def indices_by_time(times: Seconds, fps: float) -> Indices:
    """Indices of the frames nearest to 0, 1/fps, 2/fps, … seconds after the first, up to the last frame.

    `times` are the frames' presentation times in order; with variable frame rates the steps between indices differ.
    Of two frames equally near, the earlier. The end is the last frame's time plus half of a typical frame.
    """
    if len(times) == 0:
        return np.zeros(0, dtype=np.int64)
    since = times - times[0]
    typical = float(np.median(np.diff(since))) if len(since) > 1 else 0.0
    count = int(np.floor((since[-1] + typical / 2) * fps + SLACK)) + 1
    targets = np.arange(count) / fps
    middles = (since[1:] + since[:-1]) / 2 + SLACK / fps
    return np.searchsorted(middles, targets, side="left").astype(np.int64)


def indices_by_stride(frames: int, stride: int) -> Indices:
    """Every `stride`-th frame, whatever the frame rate: what the official training code does (stride 4)."""
    return np.arange(0, frames, stride, dtype=np.int64)


def window(indices: Indices, frames_max: int, first: int = 0) -> Indices:
    """At most `frames_max` of the indices in a row, from place `first` on."""
    return indices[first : first + frames_max]
