"""Square crops at the training size. F frames, H W pixels; pixels uint8 0..255 in and out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as nn
from numpy.typing import NDArray
from torch import Tensor

from data_prep.video.probe import Probe
from data_prep.video.shot_types import CropPath

UInt8 = NDArray[np.uint8]


def crop_frames(frames_FHWC: UInt8, path: CropPath, size: int, first: int = 0) -> UInt8:
    """(F, size, size, 3): the crops of `path`, resampled with antialiasing. Nothing is ever flipped.

    The frames may be a part of the clip, beginning at its frame `first`.
    """
    pixels = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2)
    if path.moves:
        # the clamp: bicubic overshoots at edges
        out = _moving(pixels.float(), path, size, first).round_().clamp_(0, 255).byte()
    else:
        out = _standing(pixels, path, size)
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy())


def _standing(pixels_FCHW: Tensor, path: CropPath, size: int) -> Tensor:
    """In integers, as pixels are: several times faster than in floats, and within a level of them."""
    left, top, side, _ = path.first_box()
    crop = pixels_FCHW[:, :, top : top + side, left : left + side]
    if crop.shape[-2:] == (size, size):
        return crop
    return nn.interpolate(crop, size=(size, size), mode="bicubic", antialias=True, align_corners=False)


def _moving(pixels_FCHW: Tensor, path: CropPath, size: int, first: int) -> Tensor:
    """One grid a frame, at a whole multiple of the size that is as fine as the source, then averaged: a grid alone
    would skip source pixels where a crop is larger than `size`, and those would flicker as the crop moves."""
    height, width = pixels_FCHW.shape[-2:]
    finer = max(1, int(np.ceil(float(path.side.max()) / size - 1e-6)))
    steps = (torch.arange(size * finer, dtype=torch.float32) + 0.5) / (size * finer) - 0.5
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    here = slice(first, first + len(pixels_FCHW))
    side, angle, x, y = (
        torch.from_numpy(part[here]).float()[:, None, None]
        for part in (path.side, path.angle, path.centre_x, path.centre_y)
    )
    u = x + side * (right * angle.cos() - down * angle.sin())
    v = y + side * (right * angle.sin() + down * angle.cos())
    grid = torch.stack([u / width * 2 - 1, v / height * 2 - 1], dim=-1)
    out = nn.grid_sample(pixels_FCHW, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return nn.avg_pool2d(out, finer) if finer > 1 else out


def with_square_pixels(frames_FHWC: UInt8, found: Probe) -> UInt8:
    """Frames as a player shows them: wider, or higher, where the video's pixels are not square."""
    aspect = found.pixel_aspect
    height, width = frames_FHWC.shape[1:3]
    if (height, width) == (found.width, found.height) and height != width:  # turned by a display matrix
        aspect = 1 / aspect
    shown = (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
    if shown == (height, width):
        return frames_FHWC
    pixels = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2)
    out = nn.interpolate(pixels, size=shown, mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy())
