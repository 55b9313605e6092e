"""Motion measures that need no trained weights, from frames (F, H, W, 3) uint8 0..255 as they are read from a file.

Dense flow is OpenCV's DIS (Kroeger et al., ECCV 2016) on grey frames whose longer side is 192 pixels. On rendered clips
of known speed it was the most accurate of DIS, Farneback, TV-L1 and iterative Lucas-Kanade, and four to eight times
faster than the last two. At 64 pixels all of them mix object and background, so small frames are enlarged first.
Known limit: an object that covers or lights most of the picture is taken for the camera.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evaluation.metrics.camera import Similarity, fit_similarity
from infra.video import UInt8

Float = NDArray[np.float64]

WORKING_SIDE = 192
DUPLICATE_BELOW = 12  # levels in all but 0.1 % of the values: H.264 at CRF 20 refines a repeated frame by at most 10,
# and a shape that creeps by a fifth of a pixel changes its rim by 20. The mean difference cannot tell the two apart.
CUT_ABOVE = 0.35  # share of the colour histogram that changes between neighbours
STATIC_BELOW = 0.02  # widths per second in the fastest 5 % of the pixels
MOVING_ABOVE = 0.05  # widths per second against the camera; slower is the noise of the flow
TOP_SHARE = 0.05  # as in VBench's dynamic degree


@dataclass(frozen=True)
class MotionScores:
    """Motion of one clip. W picture widths, H picture heights, s seconds. NaN where every pair of frames is a cut."""

    frame_difference: float
    """Mean absolute difference of neighbouring frames, 0..255."""
    flicker: float
    """Mean absolute grey difference along the flow, 0..255, where both flows agree: what changes though nothing moves
    there, comes into sight or is covered."""
    duplicate_ratio: float
    """Share of neighbouring frames that are the same picture."""
    cut_ratio: float
    """Share of neighbouring frames with another colour histogram; these pairs are left out of everything below."""
    flow_median: float
    """Median speed of the pixels, W/s: moves of the whole picture."""
    dynamic_degree: float
    """Mean speed of the fastest 5 % of the pixels, W/s: moves of anything."""
    object_motion: float
    """Mean speed against the camera of the fastest 5 % of the pixels, W/s."""
    object_velocity_x: float
    """Mean velocity of the moving object against the camera, W/s, positive to the right; 0 when nothing moves."""
    object_velocity_y: float
    """The same, W/s (widths, not heights), positive downwards."""
    moving_share: float
    """Share of the pixels that move against the camera."""
    zoom_rate: float
    """d ln(scale)/dt, 1/s, positive when the camera zooms in."""
    roll_rate: float
    """rad/s, positive when the content turns clockwise on the screen (the camera rolls anticlockwise)."""
    pan_rate: float
    """W/s, positive when the content moves right (the camera pans left)."""
    tilt_rate: float
    """H/s, positive when the content moves down (the camera tilts up)."""
    coherence: float
    """Share of the squared flow that the camera explains, 0..1."""
    static: bool
    """Nothing moves: smoothness means nothing for this clip."""

    def as_row(self) -> dict[str, float | bool]:
        return asdict(self)


def measure_motion(frames_FHWC: UInt8, fps: float) -> MotionScores:
    """The motion of a clip of at least two frames shown at `fps`.

    Raises:
        ValueError: fewer than two frames.
    """
    if len(frames_FHWC) < 2:
        raise ValueError("motion needs at least two frames")
    changes = [np.abs(a - b) for a, b in _pairs(frames_FHWC.astype(np.float32))]
    cuts = np.array([_histogram_change(a, b) > CUT_ABOVE for a, b in _pairs(frames_FHWC)])
    grey = _working_grey(frames_FHWC)
    flows = [_flow(a, b) for a, b in _pairs(grey)]
    back = [_flow(b, a) for a, b in _pairs(grey)]
    flicker = [_flicker(a, b, *both) for (a, b), *both in zip(_pairs(grey), flows, back, strict=True)]
    height, width = grey.shape[1:]
    kept = [flow / width * fps for flow, cut in zip(flows, cuts, strict=True) if not cut]  # widths per second
    cameras = [fit_similarity(flow / fps) for flow in kept]
    speeds = [np.hypot(flow[..., 0], flow[..., 1]) for flow in kept]
    dynamic = _mean([_top(speed) for speed in speeds])
    velocity, moving_share = _object_velocity([camera.residual * fps for camera in cameras])
    return MotionScores(
        frame_difference=float(np.mean(changes)),
        flicker=_mean([value for value in flicker if np.isfinite(value)]),
        duplicate_ratio=float(np.mean([np.quantile(change, 0.999) < DUPLICATE_BELOW for change in changes])),
        cut_ratio=float(cuts.mean()),
        flow_median=_mean([float(np.median(speed)) for speed in speeds]),
        dynamic_degree=dynamic,
        object_motion=_mean([_top(_length(camera.residual) * fps) for camera in cameras]),
        object_velocity_x=velocity[0],
        object_velocity_y=velocity[1],
        moving_share=moving_share,
        static=bool(dynamic < STATIC_BELOW),
        **_camera_rates(cameras, fps, width / height),
    )


def _camera_rates(cameras: list[Similarity], fps: float, widths_per_height: float) -> dict[str, float]:
    return {
        "zoom_rate": _mean([camera.log_scale for camera in cameras]) * fps,
        "roll_rate": _mean([camera.angle for camera in cameras]) * fps,
        "pan_rate": _mean([camera.shift[0] for camera in cameras]) * fps,
        "tilt_rate": _mean([camera.shift[1] for camera in cameras]) * fps * widths_per_height,
        "coherence": _mean([camera.coherence for camera in cameras]),
    }


def _object_velocity(residuals: list[Float]) -> tuple[tuple[float, float], float]:
    """Mean velocity of the pixels that move against the camera, and their share of the picture.

    The flow fades towards an object's rim, so only pixels at half the object's speed or more are averaged.
    """
    if not residuals:
        return (float("nan"), float("nan")), float("nan")
    stacked = np.stack(residuals)
    speed = _length(stacked)
    moving = speed > MOVING_ABOVE
    share = float(moving.mean())
    if share < 0.01:
        return (0.0, 0.0), share
    body = speed > max(MOVING_ABOVE, 0.5 * float(np.quantile(speed[moving], 0.9)))
    x, y = stacked[body].mean(axis=0)
    return (float(x), float(y)), share


def _working_grey(frames_FHWC: UInt8) -> UInt8:
    """(F, h, w) grey frames, the longer side `WORKING_SIDE`, lightly blurred against codec noise."""
    height, width = frames_FHWC.shape[1:3]
    factor = WORKING_SIDE / max(height, width)
    size = (max(16, round(width * factor)), max(16, round(height * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    out = []
    for frame in frames_FHWC:
        grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=method)
        out.append(cv2.GaussianBlur(grey, (0, 0), 1.5))
    return np.stack(out).astype(np.uint8)


def _flow(first: UInt8, second: UInt8) -> Float:
    """(h, w, 2) displacement of the content of `first` in pixels, x then y."""
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    start = np.zeros((*first.shape, 2), dtype=np.float32)
    return np.asarray(estimator.calc(first, second, start), dtype=np.float64)


def _flicker(first: UInt8, second: UInt8, flow: Float, back: Float) -> float:
    """Mean absolute grey difference, 0..255, of `first` and `second` fetched back along the flow, over the pixels
    that the flow back returns to where they were (Sundaram et al., ECCV 2010, eq. 5); NaN if there are none."""
    height, width = first.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    where = x + flow[..., 0].astype(np.float32), y + flow[..., 1].astype(np.float32)
    fetched_flow = cv2.remap(back.astype(np.float32), *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    returned: Float = np.asarray(fetched_flow, dtype=np.float64)
    apart, sizes = _length(flow + returned) ** 2, _length(flow) ** 2 + _length(returned) ** 2
    inside = (where[0] >= 0) & (where[0] <= width - 1) & (where[1] >= 0) & (where[1] <= height - 1)
    seen = inside & (apart < 0.01 * sizes + 0.5)
    if not seen.any():
        return float("nan")
    fetched = cv2.remap(second, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return float(np.abs(fetched.astype(np.float32) - first.astype(np.float32))[seen].mean())


def _histogram_change(first: UInt8, second: UInt8) -> float:
    """Share of the pixels, 0..1, that change their bin in a 4x4x4 colour histogram."""
    bins = [np.bincount((f // 64 @ np.array([16, 4, 1])).ravel(), minlength=64) for f in (first, second)]
    return float(np.abs(bins[0] - bins[1]).sum() / 2 / first[..., 0].size)


def _pairs(frames: NDArray[Any]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return list(itertools.pairwise(frames))


def _length(vectors: Float) -> Float:
    return np.asarray(np.hypot(vectors[..., 0], vectors[..., 1]))


def _top(speed: Float) -> float:
    count = max(1, round(speed.size * TOP_SHARE))
    return float(np.partition(speed.ravel(), -count)[-count:].mean())


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
