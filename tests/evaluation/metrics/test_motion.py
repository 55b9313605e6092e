"""Motion measures on clips drawn with a known motion, through a real mp4."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.video.crop import crop_frames
from data_prep.video.shot_types import crop_path
from evaluation.metrics.camera import fit_similarity
from evaluation.metrics.motion import MotionScores, measure_motion
from infra.pocket.clips import CAMERA_RATE, MOTIONS, SPEED_PER_SECOND, Scene, render
from infra.video import read_mp4, write_mp4

FPS = 8
SCENE = Scene("circle", "red", "standing still", "grass", seed=5)
WIDTHS = 0.5  # a picture is two world units wide


def measure(scene: Scene, folder: Path, size: int = 64) -> MotionScores:
    write_mp4(folder / "clip.mp4", render(scene, 16, size, FPS), FPS)
    return measure_motion(read_mp4(folder / "clip.mp4"), FPS)


@pytest.mark.parametrize("background", ["grass", "sand", "water", "bricks"])
@pytest.mark.parametrize("motion", [name for name in MOTIONS if name != "standing still"])
def test_an_objects_velocity_has_its_direction_and_size(motion: str, background: str, tmp_path: Path):
    scene = replace(SCENE, motion=motion, background=background, seed=hash_of(motion + background))
    got = measure(scene, tmp_path)
    x, y = MOTIONS[motion]
    along = got.object_velocity_x * x + got.object_velocity_y * y
    across = got.object_velocity_x * y - got.object_velocity_y * x
    speed = SPEED_PER_SECOND * WIDTHS  # the clip's own is within 15 % of it; flow fades at the rim
    assert 0.6 * speed < along < 1.3 * speed
    assert abs(across) < 0.3 * speed
    assert 0.05 < got.moving_share < 0.4
    assert got.dynamic_degree > 0.6 * speed
    assert not got.static
    assert camera_of(got) == pytest.approx([0, 0, 0, 0], abs=0.02)


@pytest.mark.parametrize("style", ["plain", "ink"])
@pytest.mark.parametrize(
    ("camera", "zoom", "pan"),
    [
        ("zoom-in", CAMERA_RATE, 0.0),
        ("zoom-out", -CAMERA_RATE, 0.0),
        ("pan-left", 0.0, CAMERA_RATE * WIDTHS),  # the camera goes left, so the content goes right
        ("pan-right", 0.0, -CAMERA_RATE * WIDTHS),
    ],
)
def test_a_cameras_rates_are_found(camera: str, zoom: float, pan: float, style: str, tmp_path: Path):
    got = measure(replace(SCENE, camera=camera, style=style), tmp_path)
    assert camera_of(got) == pytest.approx([zoom, 0, pan, 0], abs=0.03)
    assert got.coherence > 0.8
    assert not got.static


RATES = {
    "zoom-in": ("zoom_rate", CAMERA_RATE),
    "zoom-out": ("zoom_rate", -CAMERA_RATE),
    "pan-left": ("pan_rate", CAMERA_RATE * WIDTHS),  # the camera goes left, so the content goes right
    "pan-right": ("pan_rate", -CAMERA_RATE * WIDTHS),
    "tilt-up": ("tilt_rate", CAMERA_RATE * WIDTHS),
    "tilt-down": ("tilt_rate", -CAMERA_RATE * WIDTHS),
    "roll-clockwise": ("roll_rate", CAMERA_RATE),
    "roll-anticlockwise": ("roll_rate", -CAMERA_RATE),
}


@pytest.mark.parametrize("camera", RATES)
def test_rates_are_within_five_percent_on_crops_of_a_still_scene(camera: str):
    """The rules of `data_prep` move a crop over a detailed picture, as for reference clips, with known rates."""
    rng = np.random.default_rng(3)
    world = sum(
        cv2.resize(rng.normal(0, 40, (side, side, 3)), (384, 384), interpolation=cv2.INTER_CUBIC)
        for side in (6, 24, 96)
    )
    frames = np.repeat(np.clip(world + 128, 0, 255).astype(np.uint8)[None], 16, axis=0)
    got = measure_motion(crop_frames(frames, crop_path(camera, 384, 384, 16, FPS), 192), FPS)
    name, rate = RATES[camera]
    rate = np.sign(rate) * {"zoom_rate": np.log(1.284), "roll_rate": np.radians(14.3)}.get(name, 0.125)
    assert getattr(got, name) == pytest.approx(rate, rel=0.05)
    assert max(abs(getattr(got, other)) / FPS for other, _ in RATES.values() if other != name) < 0.0025


def test_an_object_is_seen_against_a_moving_camera(tmp_path: Path):
    got = measure(replace(SCENE, motion="moving up", camera="pan-left"), tmp_path)
    assert got.pan_rate == pytest.approx(CAMERA_RATE * WIDTHS, abs=0.02)
    assert got.object_velocity_y == pytest.approx(-SPEED_PER_SECOND * WIDTHS, rel=0.4)
    assert abs(got.object_velocity_x) < 0.05
    assert got.flow_median == pytest.approx(CAMERA_RATE * WIDTHS, abs=0.02)


@pytest.mark.parametrize("size", [128, 512])
def test_rates_do_not_depend_on_the_size(size: int, tmp_path: Path):
    small = measure(replace(SCENE, camera="zoom-in"), tmp_path)
    large = measure(replace(SCENE, camera="zoom-in"), tmp_path, size)
    assert large.zoom_rate == pytest.approx(small.zoom_rate, abs=0.04)


def test_a_picture_wider_than_high_pans_in_widths_and_tilts_in_heights():
    world = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([world[40 + 2 * i : 136 + 2 * i, 40 - 2 * i : 232 - 2 * i] for i in range(6)])
    got = measure_motion(frames, fps=1)
    assert got.pan_rate == pytest.approx(2 / 192, rel=0.1)
    assert got.tilt_rate == pytest.approx(-2 / 96, rel=0.1)


def test_a_frozen_clip_is_flagged(tmp_path: Path):
    frozen = np.repeat(render(SCENE, 1, 64), 16, axis=0)
    write_mp4(tmp_path / "clip.mp4", frozen, FPS)
    got = measure_motion(read_mp4(tmp_path / "clip.mp4"), FPS)
    assert got.static
    assert got.duplicate_ratio == 1
    assert got.dynamic_degree < 0.005
    assert (got.object_velocity_x, got.object_velocity_y) == (0, 0)


def test_a_creeping_shape_repeats_no_frame(tmp_path: Path):
    write_mp4(tmp_path / "clip.mp4", render(replace(SCENE, motion="moving left"), 8, 64, 10 * FPS), FPS)
    assert measure_motion(read_mp4(tmp_path / "clip.mp4"), FPS).duplicate_ratio == 0


def test_flicker_is_what_no_motion_and_no_occlusion_explains():
    """A shape that moves covers and uncovers the ground, which is no flicker; brightness that jumps is."""
    still, moving = (render(replace(SCENE, motion=motion), 16, 64, FPS) for motion in ("standing still", "moving left"))
    noise = np.random.default_rng(0).normal(0, 10, (16, 64, 64, 3))
    noisy = measure_motion(np.clip(still + noise, 0, 255).astype(np.uint8), FPS).flicker
    jumps = 12 * (np.arange(16) % 2)[:, None, None, None]
    pulsing = measure_motion(np.clip(still.astype(int) + jumps, 0, 255).astype(np.uint8), FPS).flicker
    assert measure_motion(still, FPS).flicker < 0.1
    assert measure_motion(moving, FPS).flicker < 0.25 * noisy
    assert pulsing == pytest.approx(12, rel=0.15)


def test_cuts_are_left_out():
    first = render(replace(SCENE, motion="moving left"), 8, 64, FPS)
    second = render(Scene("square", "blue", "moving left", "water", seed=2), 8, 64, FPS)
    got = measure_motion(np.concatenate([first, second]), FPS)
    assert got.cut_ratio == pytest.approx(1 / 15)
    assert got.object_velocity_x < -0.1
    both = measure_motion(np.stack([first[0], second[0]]), FPS)
    assert both.cut_ratio == 1
    assert np.isnan([both.dynamic_degree, both.zoom_rate, both.object_velocity_x]).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_cores_is_no_part_of_the_score(threads: int):
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expected = measure_motion(noise, FPS)
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        assert measure_motion(noise, FPS) == expected
    finally:
        cv2.setNumThreads(before)


def test_one_frame_has_no_motion():
    with pytest.raises(ValueError, match="two frames"):
        measure_motion(render(SCENE, 1, 64), FPS)


def test_the_fit_finds_an_exact_similarity_under_outliers():
    height, width = 60, 90
    y, x = np.mgrid[:height, :width]
    points = np.stack([x - (width - 1) / 2, y - (height - 1) / 2], axis=-1) / width
    scale, angle = np.exp(0.03), 0.02
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flow = points @ (turn - np.eye(2)).T + [0.01, -0.02]
    flow[20:45, 30:65] += [0.05, 0.08]
    got = fit_similarity(flow)
    assert got.log_scale == pytest.approx(0.03, abs=1e-4)
    assert got.angle == pytest.approx(0.02, abs=1e-4)
    assert got.shift == pytest.approx((0.01, -0.02), abs=1e-4)
    assert got.residual[30, 50] == pytest.approx([0.05, 0.08], abs=1e-3)
    assert got.residual[0, 0] == pytest.approx([0, 0], abs=1e-4)


def test_every_measure_is_in_the_row():
    got = measure_motion(render(replace(SCENE, motion="moving left"), 3, 64, FPS), FPS)
    assert set(got.as_row()) == {field.name for field in dataclasses.fields(MotionScores)}


def camera_of(scores: MotionScores) -> list[float]:
    return [scores.zoom_rate, scores.roll_rate, scores.pan_rate, scores.tilt_rate]


def hash_of(text: str) -> int:
    return sum(map(ord, text))
