"""Shot cuts at known times: joined clips, flashes, variable frame rates, turned pictures, damage, real footage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import ShotMove
from data_prep.filters.filters import Filters
from data_prep.filters.measures import find_cuts
from data_prep.problems import UnusableError
from data_prep.video.decode import DecodedClip, DecodeRequest, Refused, decode_video
from data_prep.video.probe import probe
from infra.pocket.clips import Scene, render
from infra.video import UInt8
from tests.data_prep.conftest import Write

ON = Filters(cuts="split")
TICK = 2e-3  # of these files' clock, seconds


@pytest.fixture(scope="module")
def joined() -> UInt8:
    """40 frames of a clip and 24 of another."""
    one = render(Scene("circle", "red", "moving left", "grass", seed=3), 40, 64)
    other = render(Scene("square", "blue", "moving up", "sand", seed=4), 24, 64)
    return np.concatenate([one, other])


def turned(path: Path) -> Path:
    """The same file with a display matrix that turns it by a quarter."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    to = path.with_name(f"turned-{path.name}")
    to.write_bytes(data)
    return to


def borders(path: Path, filters: Filters = ON) -> list[float]:
    """Where shots end, seconds; each begins where the one before it ends."""
    spans = find_cuts(path, filters)
    assert [start for start, _ in spans] == [0.0, *(end for _, end in spans[:-1])]
    return [end for _, end in spans]


def request(path: Path, cuts: str, **changes: object) -> DecodeRequest:
    fields = {"size": 32, "fps": 8.0, "stride": None, "frames_min": 8, "frames_max": 32, "shot_type": "none"}
    fields["move"] = ShotMove()
    fields |= {"window": "first", "seed": 0, "filters": Filters(cuts=cuts), **changes}
    return DecodeRequest("v", path, **fields)


def test_a_cut_is_found_where_it_is(joined: UInt8, write_video: Write):
    assert borders(write_video("joined.mp4", joined)) == pytest.approx([2.5, 4.0], abs=TICK)
    assert borders(write_video("whole.mp4", joined[:40])) == pytest.approx([2.5], abs=TICK)


def test_scenedetect_itself_says_the_same(joined: UInt8, write_video: Write):
    from scenedetect import ContentDetector, detect

    path = write_video("joined.mp4", joined)
    theirs = [end.seconds for _, end in detect(str(path), ContentDetector(threshold=27))]
    assert borders(path) == pytest.approx(theirs, abs=TICK)


def test_the_threshold_is_the_detectors(joined: UInt8, write_video: Write):
    path = write_video("joined.mp4", joined)
    assert borders(path, Filters(cuts="split", cut_threshold=200)) == pytest.approx([4.0], abs=TICK)


@pytest.mark.parametrize("first", [1, 3])
def test_the_end_of_another_shot_is_cut_off(joined: UInt8, write_video: Write, first: int):
    """Videos cut by hand often begin with a few frames of the shot before."""
    path = write_video("late.mp4", joined[40 - first :])
    assert borders(path) == pytest.approx([first / 16, (24 + first) / 16], abs=TICK)


def test_a_flash_is_a_shot_of_its_own(joined: UInt8, write_video: Write):
    lit = joined[:40].copy()
    lit[20:22] = 250
    path = write_video("flash.mp4", lit)
    assert borders(path) == pytest.approx([1.25, 1.375, 2.5], abs=TICK)
    clips = decode_video(request(path, "split"))
    assert [clip.reason if isinstance(clip, Refused) else clip.shot for clip in clips] == [0, "too_short", 2]


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
@pytest.mark.parametrize("slow_first", [False, True])
def test_times_are_those_of_the_frames(joined: UInt8, write_video: Write, name: str, slow_first: bool):
    """50 frames a second and then 10, or the other way round; the first frame is not at 0."""
    steps = np.where((np.arange(64) < 40) == slow_first, 0.1, 0.02)
    seconds = 0.4 + np.concatenate([[0], np.cumsum(steps[:-1])])
    path = write_video(name, joined, fps=50, seconds=seconds.tolist())
    cut, _ = borders(path)
    assert cut == pytest.approx(seconds[40] - seconds[0], abs=TICK)


def test_a_shot_has_no_frame_of_its_neighbours(joined: UInt8, write_video: Write):
    """Frames are much closer before the cut than on average."""
    seconds = np.cumsum(np.where(np.arange(64) <= 40, 0.02, 0.1))
    path = write_video("vfr.mp4", joined, fps=50, seconds=seconds.tolist())
    one, other = decode_video(request(path, "split", fps=4.0, frames_min=2))
    assert isinstance(one, DecodedClip)
    assert isinstance(other, DecodedClip)
    assert one.source_indices[-1] < 40
    assert other.source_indices[0] == 40


def test_a_turned_file_has_the_same_cuts(joined: UInt8, write_video: Write):
    path = write_video("joined.mp4", np.ascontiguousarray(joined[:, :48]))
    assert borders(turned(path)) == borders(path) == pytest.approx([2.5, 4.0], abs=TICK)
    clips = decode_video(request(turned(path), "split"))
    assert [clip.source_indices[0] for clip in clips if isinstance(clip, DecodedClip)] == [0, 40]
    assert {(clip.source_width, clip.source_height) for clip in clips if isinstance(clip, DecodedClip)} == {(48, 64)}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data, at: data[:at] + bytes(len(data) - at),  # nothing decodes
        lambda data, at: data[: at + 40] + np.random.default_rng(0).bytes(len(data) - at - 40),
    ],
)
def test_damaged_frames_are_said(joined: UInt8, write_video: Write, damage: Callable[[bytes, int], bytes]):
    path = write_video("joined.mp4", joined, options={"movflags": "+faststart"})
    data = path.read_bytes()
    broken = path.with_name("broken.mp4")
    broken.write_bytes(damage(data, data.index(b"mdat") + 4))
    with pytest.raises(UnusableError) as caught:
        find_cuts(broken, ON)
    assert caught.value.reason in ("damaged", "no_frames")


@pytest.mark.slow
def test_the_cut_of_real_footage(realvideo: Path):
    path = realvideo / "videos/000051_000100/1000011.mp4"
    times = probe(path).times
    cut, _ = borders(path)
    assert cut == pytest.approx(times[240] - times[0])
    one, other = decode_video(request(path, "split"))
    assert isinstance(one, DecodedClip)
    assert isinstance(other, DecodedClip)
    assert one.source_indices[-1] < other.source_indices[0] == 240


@pytest.mark.slow
def test_real_footage_of_one_shot_has_no_cut(realvideo: Path):
    """Drones, drives, passing cars, bottles, hands: fast, and not cut."""
    paths = [path for path in sorted(realvideo.glob("videos/*/*.m*")) if path.stem != "1000011"]
    assert len(paths) == 11
    assert {path.stem: len(borders(path)) for path in paths} == {path.stem: 1 for path in paths}
