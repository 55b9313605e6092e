"""Rule-based shot types (paper sec. 4.3): the crop moves over a clip's frames as a camera would.

F frames, W H source pixels. Names are those of the released MotionLoRAs: in `pan-left` the camera moves left, so the
picture's content moves right; in `roll-clockwise` the picture's content turns clockwise, so the crop turns the other
way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from data_prep.config import ShotMove, ShotType

AS_CONFIGURED = ShotMove()
SHOT_TYPES: tuple[str, ...] = get_args(ShotType)

Float = NDArray[np.float64]


@dataclass(frozen=True)
class CropPath:
    """A square crop a frame, in source pixels: middle, side, and angle (radians, clockwise on the screen)."""

    centre_x: Float
    centre_y: Float
    side: Float
    angle: Float

    @property
    def moves(self) -> bool:
        return bool(len(self.side) > 1 and any(np.ptp(part) > 0 for part in vars(self).values()))

    def first_box(self) -> list[int]:
        """Left, top, width, height of the first frame's crop, rounded to pixels; the angle is left out."""
        half = self.side[0] / 2
        side = round(float(self.side[0]))
        return [round(float(self.centre_x[0] - half)), round(float(self.centre_y[0] - half)), side, side]


def crop_path(
    shot: ShotType, width: int, height: int, frames: int, fps: float, move: ShotMove = AS_CONFIGURED
) -> CropPath:
    """The crops of `frames` frames at `fps`, all within the picture, as large as the move allows."""
    seconds = np.arange(frames) / fps
    length = float(seconds[-1]) if frames else 0.0
    if move.easing == "eased" and length:
        done = seconds / length
        seconds = length * done * done * (3 - 2 * done)
    x, y = np.full(frames, width / 2), np.full(frames, height / 2)
    largest = float(min(width, height))
    side, angle = np.full(frames, largest), np.zeros(frames)
    kind, _, way = shot.partition("-")
    if kind == "zoom":
        remaining = seconds if way == "in" else length - seconds
        side = largest * np.exp(-_zoom_rate(move) * remaining)
    elif kind in ("pan", "tilt"):
        along, across = (width, height) if kind == "pan" else (height, width)
        room = 1 + move.pan * length
        side = np.full(frames, min(across, along / room))
        offset = move.pan * side * (seconds - length / 2) * (1 if way in ("right", "down") else -1)
        x, y = (x + offset, y) if kind == "pan" else (x, y + offset)
    elif kind == "roll":
        angle = np.radians(move.roll) * (seconds - length / 2) * (-1 if way == "clockwise" else 1)
        side = side / float(np.max(np.abs(np.cos(angle)) + np.abs(np.sin(angle)), initial=1.0))
    return CropPath(x, y, side, angle)


def frames_before_blur(
    shot: ShotType, width: int, height: int, size: int, fps: float, move: ShotMove = AS_CONFIGURED
) -> int | None:
    """How many frames a zoom may last before its smallest crop has fewer than `size` source pixels; None: any number.

    0 where the whole picture has fewer, so that no crop of it keeps the resolution.
    """
    if not shot.startswith("zoom"):
        return None
    largest = min(width, height)
    return int(np.log(largest / size) / _zoom_rate(move) * fps + 1e-9) + 1 if largest >= size else 0


def _zoom_rate(move: ShotMove) -> float:
    """d ln(zoom) / dt, 1/s."""
    return float(np.log1p(move.zoom / 100))
