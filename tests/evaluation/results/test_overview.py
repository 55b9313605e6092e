"""The overview: each cell is its animation, frame by frame; a failed one is an empty cell."""

from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.results.overview import CELL, HEADER, LABEL, PAPER, write_overview
from infra.video import write_mp4

COLOURS = {"a": (200, 30, 30), "b": (30, 30, 200)}


def clip(colour: tuple[int, int, int]) -> np.ndarray:
    """Five frames of 64 pixels that grow darker."""
    return np.stack(
        [np.full((64, 64, 3), [part * (8 - index) // 8 for part in colour], np.uint8) for index in range(5)]
    )


def test_a_cell_shows_its_animation(tmp_path: Path):
    for model, colour in COLOURS.items():
        place = tmp_path / "animations" / model / "module"
        place.mkdir(parents=True)
        write_mp4(place / "0000.mp4", np.ascontiguousarray(clip(colour)), 8, crf=4)
    titles = {"module": "A motion module with a title of several words", "failed": "Another"}
    path = write_overview(tmp_path, {"a": "Model a", "b": "Model b"}, titles, 8)
    assert path == tmp_path / "overview.gif"
    with Image.open(path) as picture:
        assert picture.size == (2 * CELL, HEADER + 2 * (CELL + LABEL))
        assert (picture.n_frames, picture.info["duration"], picture.info["loop"]) == (5, 120, 0)
        for index in range(5):
            picture.seek(index)
            page = np.asarray(picture.convert("RGB")).astype(int)
            for row, colour in enumerate(COLOURS.values()):
                middle = HEADER + row * (CELL + LABEL) + CELL // 2
                assert np.abs(page[middle, CELL // 2] - np.asarray(clip(colour)[index][0, 0], int)).max() <= 6
                assert np.abs(page[middle, CELL + CELL // 2] - PAPER).max() <= 4


def test_without_any_animation_there_is_none(tmp_path: Path):
    assert write_overview(tmp_path, {"a": "A"}, {"m": "M"}, 8) is None
    assert not list(tmp_path.iterdir())
