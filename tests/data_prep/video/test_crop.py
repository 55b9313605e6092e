"""Standing crops: the middle square, antialiased, never mirrored."""

import numpy as np
from PIL import Image

from data_prep.video.crop import crop_frames
from data_prep.video.shot_types import crop_path
from tests.data_prep.conftest import noise_frames


def test_without_resizing_it_is_the_middle_square():
    frames = noise_frames(3, 32, 64)
    path = crop_path("none", 64, 32, 3, 8.0)
    assert path.first_box() == [16, 0, 32, 32]
    assert np.array_equal(crop_frames(frames, path, 32), frames[:, :, 16:48])


def test_it_resamples_as_pillow_does():
    frames = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), dtype=np.uint8)
    ours = crop_frames(frames, crop_path("none", 120, 90, 2, 8.0), 32)
    theirs = np.stack(
        [np.asarray(Image.fromarray(frame[:, 15:105]).resize((32, 32), Image.Resampling.BICUBIC)) for frame in frames]
    )
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_a_moving_crop_is_antialiased():
    """A checkerboard of single pixels is grey at a fourth of the size; without averaging it would be noise."""
    y, x = np.mgrid[:256, :256]
    board = np.broadcast_to((((x + y) % 2) * 255).astype(np.uint8)[None, ..., None], (4, 256, 256, 3)).copy()
    out = crop_frames(board, crop_path("zoom-in", 256, 256, 4, 8.0), 64).astype(int)
    assert np.abs(out[:, 4:-4, 4:-4] - 127).max() < 25


def test_parts_of_a_clip_give_the_whole():
    frames = noise_frames(6, 64, 96)
    path = crop_path("pan-left", 96, 64, 6, 8.0)
    parts = [crop_frames(frames[:4], path, 32), crop_frames(frames[4:], path, 32, first=4)]
    assert np.array_equal(np.concatenate(parts), crop_frames(frames, path, 32))
