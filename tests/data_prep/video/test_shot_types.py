"""Shot types against ground truth: in a picture whose colours are its coordinates, a crop says where it was taken."""

import numpy as np
import pytest

from data_prep.config import ShotMove
from data_prep.video.crop import crop_frames
from data_prep.video.shot_types import SHOT_TYPES, crop_path, frames_before_blur

MOVES = (ShotMove(), ShotMove(zoom=12, pan=0.05, roll=5))
WIDTH, HEIGHT, SIZE, FRAMES, FPS = 240, 160, 48, 16, 8.0


def coordinates() -> np.ndarray:
    """(F, H, W, 3): red is x, green is y, in pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frame = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    return np.broadcast_to(frame, (FRAMES, HEIGHT, WIDTH, 3)).copy()


def measured(shot: str, move: ShotMove) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Middle x, middle y, side and angle of each frame's crop, by a linear fit to the colours of the cropped frames."""
    path = crop_path(shot, WIDTH, HEIGHT, FRAMES, FPS, move)
    out = crop_frames(coordinates(), path, SIZE).astype(np.float64)
    v, u = np.mgrid[:SIZE, :SIZE]
    basis = np.stack([np.ones(SIZE * SIZE), ((u + 0.5) / SIZE - 0.5).ravel(), ((v + 0.5) / SIZE - 0.5).ravel()], axis=1)
    fits = [np.linalg.lstsq(basis, frame.reshape(-1, 3)[:, :2], rcond=None)[0] for frame in out]
    middle = np.stack([fit[0] for fit in fits]) + 0.5  # pixel k spans k..k+1
    right = np.stack([fit[1] for fit in fits])
    return middle[:, 0], middle[:, 1], np.hypot(*right.T), np.arctan2(right[:, 1], right[:, 0])


def rate(values: np.ndarray) -> float:
    """Slope a second."""
    return float(np.polyfit(np.arange(FRAMES) / FPS, values, 1)[0])


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("shot", "sign"), [("zoom-in", 1), ("zoom-out", -1)])
def test_zoom(shot: str, sign: int, move: ShotMove):
    x, y, side, angle = measured(shot, move)
    assert rate(-np.log(side)) == pytest.approx(sign * np.log1p(move.zoom / 100), rel=0.01)
    assert np.ptp(x) < 0.5
    assert np.ptp(y) < 0.5
    assert np.ptp(angle) < 0.01
    assert max(side) == pytest.approx(HEIGHT, abs=0.7)


def test_two_seconds_of_zoom_grow_1_65_times():
    side = crop_path("zoom-in", 512, 512, 17, 8.0).side
    assert side[0] / side[-1] == pytest.approx(1.6487, abs=1e-3)


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(
    ("shot", "axis", "sign"), [("pan-left", 0, -1), ("pan-right", 0, 1), ("tilt-up", 1, -1), ("tilt-down", 1, 1)]
)
def test_pan_and_tilt(shot: str, axis: int, sign: int, move: ShotMove):
    found = measured(shot, move)
    side = float(found[2].mean())
    assert rate(found[axis]) == pytest.approx(sign * move.pan * side, rel=0.02)
    assert np.ptp(found[1 - axis]) < 0.5
    assert np.ptp(found[2]) < 1


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(("shot", "sign"), [("roll-clockwise", -1), ("roll-anticlockwise", 1)])
def test_roll(shot: str, sign: int, move: ShotMove):
    x, y, side, angle = measured(shot, move)
    assert rate(angle) == pytest.approx(sign * np.radians(move.roll), rel=0.02)
    assert np.ptp(x) < 0.7
    assert np.ptp(y) < 0.7
    assert np.ptp(side) < 1.5


def test_an_eased_move_rests_at_both_ends_and_goes_as_far():
    even = crop_path("pan-right", 240, 160, 33, 16.0)
    eased = crop_path("pan-right", 240, 160, 33, 16.0, ShotMove(easing="eased"))
    assert eased.centre_x[[0, -1]] == pytest.approx(even.centre_x[[0, -1]])
    steps = np.diff(eased.centre_x)
    assert steps[0] < 0.15 * steps.max()
    assert steps[-1] < 0.15 * steps.max()
    assert steps.max() == pytest.approx(1.5 * np.diff(even.centre_x).max(), rel=0.02)


@pytest.mark.parametrize("shot", SHOT_TYPES)
@pytest.mark.parametrize(("width", "height"), [(240, 160), (160, 240), (100, 100), (500, 90)])
def test_every_crop_stays_within_the_picture(shot: str, width: int, height: int):
    path = crop_path(shot, width, height, 24, 8.0)
    reach = path.side / 2 * (np.abs(np.cos(path.angle)) + np.abs(np.sin(path.angle)))
    assert (path.centre_x - reach > -1e-6).all()
    assert (path.centre_x + reach < width + 1e-6).all()
    assert (path.centre_y - reach > -1e-6).all()
    assert (path.centre_y + reach < height + 1e-6).all()


def test_a_zoom_ends_while_its_crop_has_the_resolution():
    for source, size in ((128, 64), (480, 256), (1080, 512)):
        frames = frames_before_blur("zoom-in", source, source, size, 8.0)
        assert frames is not None
        assert crop_path("zoom-in", source, source, frames, 8.0).side[-1] >= size - 1e-6
        assert crop_path("zoom-in", source, source, frames + 1, 8.0).side[-1] < size
    assert frames_before_blur("zoom-out", 100, 100, 256, 8.0) == 0
    assert frames_before_blur("pan-left", 100, 100, 256, 8.0) is None
