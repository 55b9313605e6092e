"""Pictures for a page that is one file: animations, film strips and histograms as data and as SVG text."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]

SHOWN_MAX = 192  # pixels a side; larger frames are made smaller
WEBP_QUALITY = 82
BARS = 24
CHART_WIDTH, CHART_HEIGHT = 240, 84


def animation(frames_FHWC: UInt8, fps: float) -> str:
    """A looping WebP as a data address."""
    frames = _images(frames_FHWC, SHOWN_MAX)
    out = io.BytesIO()
    frames[0].save(
        out, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, quality=WEBP_QUALITY
    )
    return _address(out.getvalue())


def strip(frames_FHWC: UInt8, count: int) -> str:
    """`count` frames of a clip from its first to its last, side by side, as a data address."""
    chosen = np.linspace(0, len(frames_FHWC) - 1, min(count, len(frames_FHWC))).round().astype(int)
    frames = _images(frames_FHWC[chosen], SHOWN_MAX // 2)
    width, height = frames[0].size
    sheet = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        sheet.paste(frame, (place * width, 0))
    out = io.BytesIO()
    sheet.save(out, "WEBP", quality=WEBP_QUALITY)
    return _address(out.getvalue())


def histogram(values: ArrayLike, normal: bool = False) -> str:
    """Bars as SVG in the text's colour, with the ends of the range below and the median marked; with `normal`, over -4
    to 4 and with the normal distribution's curve of mean 0 and deviation 1."""
    data = np.asarray(values, dtype=np.float64)
    low, high = (-4.0, 4.0) if normal else (float(data.min()), float(data.max()))
    if high == low:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(data, bins=BARS, range=(low, high))
    peak = len(data) * (high - low) / BARS / float(np.sqrt(2 * np.pi)) if normal else 0.0
    highest = max(float(counts.max()), peak)
    step = CHART_WIDTH / BARS
    bars = "".join(
        f'<rect x="{place * step + 1:.1f}" y="{CHART_HEIGHT - height:.1f}" width="{step - 2:.1f}" '
        f'height="{height:.1f}"/>'
        for place, count in enumerate(counts)
        if (height := count / highest * (CHART_HEIGHT - 8))
    )
    middle = (float(np.median(data)) - low) / (high - low) * CHART_WIDTH
    curve = _normal_curve(low, high, peak / highest) if normal else ""
    return (
        f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT + 1}" role="img"><g class="bars">{bars}</g>{curve}'
        f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="0" y2="{CHART_HEIGHT}"/>'
        f'<line class="axis" x1="0" x2="{CHART_WIDTH}" y1="{CHART_HEIGHT}" y2="{CHART_HEIGHT}"/></svg>'
    )


def _normal_curve(low: float, high: float, peak: float) -> str:
    """The bell, its peak at that share of the chart's height."""
    x = np.linspace(low, high, 81)
    y = peak * np.exp(-x * x / 2) * (CHART_HEIGHT - 8)
    points = " ".join(
        f"{(a - low) / (high - low) * CHART_WIDTH:.1f},{max(0.0, CHART_HEIGHT - b):.1f}"
        for a, b in zip(x, y, strict=True)
    )
    return f'<polyline class="expected" points="{points}"/>'


def psnr(one: UInt8, other: UInt8) -> float:
    """Peak signal-to-noise ratio of two stacks of frames, dB."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def _images(frames_FHWC: UInt8, side_max: int) -> list[Image.Image]:
    images = [Image.fromarray(frame) for frame in frames_FHWC]
    if images[0].width <= side_max:
        return images
    size = (side_max, round(images[0].height * side_max / images[0].width))
    return [image.resize(size, Image.Resampling.LANCZOS) for image in images]


def _address(data: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(data).decode()
