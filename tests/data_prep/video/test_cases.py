"""Videos as phones, camcorders and editors write them, each with the right answer (`shared/cases/README.md`)."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.sources.sources import VIDEO_SUFFIXES
from data_prep.video.decode import DecodedClip, Refused, decode_video
from tests.data_prep.video.test_decode import request

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "video"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no cases beside the project")
SIZE = 64


def decoded(name: str) -> DecodedClip:
    (clip,) = decode_video(request(CASES / name, frames_min=8, size=SIZE))
    assert isinstance(clip, DecodedClip), clip
    return clip


def by_hand(name: str, seconds: np.ndarray, width: int, height: int) -> np.ndarray:
    """The frames shown at these times after the first, by PyAV and Pillow: at the display size, the middle square."""
    with av.open(str(CASES / name)) as container:
        stream = container.streams.best("video")
        frames = [(float(frame.time), frame.to_image()) for frame in container.decode(stream)]
    start = frames[0][0]
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    out = []
    for at in seconds:
        _, picture = min(frames, key=lambda frame: abs(frame[0] - start - at))
        square = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
        out.append(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return np.stack(out)


@pytest.mark.parametrize(
    ("name", "decoder", "seconds", "display"),
    [
        ("trimmed_stream_copy.mp4", "pyav", 3.0, (192, 144)),
        ("negative_start.mp4", "pyav", 3.0, (192, 144)),
        ("anamorphic_16_11.mp4", "decord", 3.0, (279, 144)),
        ("transport_stream_named.mp4", "pyav", 3.0, (192, 144)),
        ("camcorder.mts", "pyav", 3.0, (192, 144)),
        ("program_stream.mpg", "pyav", 3.0, (192, 144)),
        ("cover_picture_first.mp4", None, 3.0, (192, 144)),
        ("fragmented.mp4", None, 3.0, (192, 144)),
        ("interlaced.mp4", "decord", 3.0, (192, 144)),
        ("odd_size_444.mp4", None, 3.0, None),
    ],
)
def test_each_is_cached_as_a_player_shows_it(
    name: str, decoder: str | None, seconds: float, display: tuple[int, int] | None
) -> None:
    clip = decoded(name)
    assert decoder in (None, clip.decoder)
    assert clip.duration == pytest.approx(seconds, abs=0.2)
    assert len(clip.frames_FHWC) == pytest.approx(8 * seconds, abs=2)
    size = display or (clip.source_width, clip.source_height)
    assert (clip.source_width, clip.source_height) == size
    expected = by_hand(name, np.arange(len(clip.frames_FHWC)) / 8, *size)
    apart = np.abs(clip.frames_FHWC.astype(int) - expected.astype(int)).mean(axis=(1, 2, 3))
    assert apart.max() < 8, apart  # two resamplers; the frame before is 17 away, and a squeezed picture 43


def test_hdr_is_refused_with_the_reason() -> None:
    (refused,) = decode_video(request(CASES / "hlg_bt2020.mp4", frames_min=8, size=SIZE))
    assert isinstance(refused, Refused)
    assert refused.reason == "hdr"
    assert "HLG" in refused.message
    assert "tone-map it to BT.709" in refused.message


def test_a_folder_takes_every_ending() -> None:
    assert {path.suffix for path in CASES.iterdir()} - {".txt"} <= set(VIDEO_SUFFIXES)
