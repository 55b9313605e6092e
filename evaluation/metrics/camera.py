"""Camera motion of a dense flow by a robust similarity fit. H W pixels; flow (H, W, 2) is in x, then y.

Lengths are in picture widths, y points down, and the origin is the middle of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

ROUNDS = 15
STEP = 3  # pixels between the points of the fit; neighbours in a flow field say the same
TUKEY = 4.685  # 95 % efficiency on Gaussian residuals
SCALE_MIN = 1e-5  # widths; keeps the weights defined where the flow is exactly the model


@dataclass(frozen=True)
class Similarity:
    """Content displacement between two frames: u(x) = (s·R(theta) - 1)·x + t."""

    log_scale: float
    """ln s; positive when the content grows (the camera zooms in). It adds over frames, alike for in and out."""
    angle: float
    """theta in radians; positive when the content turns clockwise on the screen."""
    shift: tuple[float, float]
    """t at the picture's middle, in widths; x positive when the content moves right (the camera pans left)."""
    coherence: float
    """Share of the squared flow that the camera explains, 0..1, over all pixels."""
    residual: Float
    """(H, W, 2) what is left of the flow, in widths: the motion of objects against the camera's."""


def fit_similarity(flow_widths: Float) -> Similarity:
    """The similarity that most of the pixels obey, by iteratively reweighted least squares with Tukey's weights.

    Objects that move on their own are outliers and get weight zero, so they may cover up to about half of the picture.
    Pixels count more towards the picture's border: what is filmed tends to be in the middle, what is behind it outside.
    """
    height, width = flow_widths.shape[:2]
    y, x = np.mgrid[:height, :width]
    grid = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], axis=-1) / width
    points, flow = (part[::STEP, ::STEP].reshape(-1, 2) for part in (grid, flow_widths))
    trust = np.abs(points).max(axis=1) ** 2
    linear, shift = np.zeros((2, 2)), np.asarray([_median(flow[:, axis], trust) for axis in (0, 1)])
    for _ in range(ROUNDS):
        left = flow - points @ linear.T - shift
        length = np.hypot(left[:, 0], left[:, 1])
        scale = TUKEY * (1.4826 * _median(length, trust) + SCALE_MIN)
        weight = trust * np.where(length < scale, (1 - (length / scale) ** 2) ** 2, 0.0)
        linear, shift = _weighted_fit(points, flow, weight)
    growth, turn = 1 + linear[0, 0], linear[1, 0]
    residual = flow_widths - grid @ linear.T - shift
    total = float((flow_widths**2).sum())
    return Similarity(
        log_scale=float(np.log(np.hypot(growth, turn))),
        angle=float(np.arctan2(turn, growth)),
        shift=(float(shift[0]), float(shift[1])),
        coherence=float(np.clip(1 - (residual**2).sum() / total, 0, 1)) if total > 1e-12 else 1.0,
        residual=residual,
    )


def _weighted_fit(points: Float, flow: Float, weight: Float) -> tuple[Float, Float]:
    """Least squares of u = [[a, -b], [b, a]]·x + t with weights; closed form."""
    share = weight[:, None] / weight.sum()
    middle, mean = (share * points).sum(0), (share * flow).sum(0)
    x, u = points - middle, flow - mean
    spread = (weight * (x**2).sum(1)).sum()
    a = (weight * (x * u).sum(1)).sum() / spread
    b = (weight * (x[:, 0] * u[:, 1] - x[:, 1] * u[:, 0])).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    return linear, mean - linear @ middle


def _median(values: Float, weight: Float) -> float:
    """The value that splits the weight into halves."""
    order = np.argsort(values)
    cumulative = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(cumulative, cumulative[-1] / 2)]])
