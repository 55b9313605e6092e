"""The drawn clips: deterministic, in WebVid's form, and moving as their captions say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.hashing import sha256_folder
from infra.pocket.clips import (
    COLOURS,
    MOTIONS,
    SPEED_PER_SECOND,
    Scene,
    every_prompt,
    random_scenes,
    render,
    write_clips,
)
from infra.video import read_mp4

SCENE = Scene("circle", "red", "moving left", "water", seed=5)


def centre_of_red(frame: np.ndarray) -> np.ndarray:
    """Mean position of clearly red pixels in world units: a measure that knows nothing of the renderer's geometry."""
    red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
    ys, xs = np.nonzero((red > 150) & (green < 90) & (blue < 90))
    return np.array([xs.mean(), ys.mean()]) / frame.shape[0] * 2 - 1


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_object_moves_as_the_caption_says(motion: str) -> None:
    frames = render(replace(SCENE, motion=motion), frames=33, size=128, fps=16)
    velocity = (centre_of_red(frames[-1]) - centre_of_red(frames[0])) / 2  # 32 frame intervals are two seconds
    expected = np.array(MOTIONS[motion]) * SPEED_PER_SECOND
    assert np.allclose(velocity, expected, atol=0.16 * SPEED_PER_SECOND)


def test_the_zoom_camera_enlarges_at_its_rate() -> None:
    still = replace(SCENE, motion="standing still", camera="zoom-in")
    frames = render(still, frames=17, size=128, fps=16)
    area = [(np.moveaxis(frame, -1, 0)[0] > 150).sum() for frame in frames]
    assert np.log(area[-1] / area[0]) / 2 == pytest.approx(0.25, abs=0.05)  # ln of length a second


def test_captions_are_the_scene_and_no_two_prompts_are_equal() -> None:
    assert SCENE.caption == "a red circle moving left on water"
    assert len(set(every_prompt())) == len(every_prompt()) == 4 * len(COLOURS) * len(MOTIONS) * 4


def test_the_same_seed_writes_the_same_bytes_and_another_one_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_clips(tmp_path / name, count=2, seed=seed)
    assert sha256_folder(tmp_path / "a") == sha256_folder(tmp_path / "b") != sha256_folder(tmp_path / "c")


def test_the_table_has_webvids_columns_and_every_video_decodes(tmp_path: Path) -> None:
    table = write_clips(tmp_path, count=3, seed=1)
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["videoid", "contentUrl", "duration", "page_dir", "name"]
    scenes = list(random_scenes(3, 1, "stock"))
    assert [row["name"] for row in rows] == [scene.caption for scene in scenes]
    for row, scene in zip(rows, scenes, strict=True):
        frames = read_mp4(tmp_path / "videos" / row["page_dir"] / f"{row['videoid']}.mp4")
        drawn = render(scene, 40, 128)
        assert frames.shape == drawn.shape
        assert np.abs(frames.astype(int) - drawn).mean() < 8  # H.264 at crf 20


def test_stock_footage_carries_a_watermark_that_stays() -> None:
    clean, stock = render(SCENE, 9, 64), render(replace(SCENE, domain="stock"), 9, 64)
    marked_rows = stock[:, int(64 * 0.3)].astype(int).mean() - stock[:, int(64 * 0.3) - 4].astype(int).mean()
    assert marked_rows > 20
    assert abs(clean[:, 19].astype(int).mean() - clean[:, 15].astype(int).mean()) < 15
