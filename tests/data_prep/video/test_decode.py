"""Decoded clips against PyAV, an independent reader; and videos of no use against the reason that a person reads."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_prep.config import ShotMove
from data_prep.filters.filters import Filters
from data_prep.video.decode import DecodedClip, DecodeRequest, Refused, decode_video, motion
from data_prep.video.sampling import indices_by_time
from tests.data_prep.conftest import Write, noise_frames


def request(path: Path, **changes: object) -> DecodeRequest:
    plain = DecodeRequest(
        clip_id="clip",
        path=path,
        size=64,
        fps=8.0,
        stride=None,
        frames_min=2,
        frames_max=64,
        shot_type="none",
        move=ShotMove(),
        window="first",
        seed=0,
        filters=Filters(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def decoded(path: Path, **changes: object) -> DecodedClip:
    (clip,) = decode_video(request(path, **changes))
    assert isinstance(clip, DecodedClip), clip
    return clip


def refused(path: Path, **changes: object) -> Refused:
    (answer,) = decode_video(request(path, **changes))
    assert isinstance(answer, Refused)
    return answer


def by_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx264"), ("a.m4v", "mpeg4"),
                        ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("b.mp4", "libx265")]
)  # fmt: skip
def test_frames_are_those_at_their_times(write_video: Write, name: str, codec: str):
    path = write_video(name, noise_frames(45, 64, 64), fps=30, codec=codec)
    clip = decoded(path)
    wanted = indices_by_time(np.arange(45) / 30, 8.0).tolist()
    assert clip.source_indices == wanted == [0, 4, 7, 11, 15, 19, 22, 26, 30, 34, 37, 41]
    assert np.abs(clip.frames_FHWC.astype(int) - by_pyav(path)[wanted]).max() <= 1
    assert (clip.source_frames, clip.fps, clip.crop) == (45, 8.0, [0, 0, 64, 64])
    assert clip.source_fps == pytest.approx(30, rel=2e-3)


def test_a_gif_is_read_by_the_other_decoder(tmp_path: Path):
    frames = [Image.fromarray(frame) for frame in noise_frames(20, 64, 64)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    clip = decoded(tmp_path / "a.gif")
    assert (clip.decoder, clip.source_frames) == ("pyav", 20)
    assert clip.source_indices == indices_by_time(np.arange(20) / 10, 8.0).tolist()
    assert np.array_equal(clip.frames_FHWC, by_pyav(tmp_path / "a.gif")[clip.source_indices])


def test_variable_frame_rate_goes_by_time(write_video: Write):
    seconds = [*(i / 40 for i in range(40)), *(1 + i / 10 for i in range(20))]
    path = write_video("vfr.mp4", noise_frames(60, 64, 64), seconds=seconds, options={"bf": "0"})
    clip = decoded(path)
    times = np.asarray(seconds)[clip.source_indices]
    assert np.abs(times - np.arange(len(times)) / 8).max() <= 0.05 + 1e-6
    assert len(times) == 24
    assert np.abs(clip.frames_FHWC.astype(int) - by_pyav(path)[clip.source_indices]).max() <= 1


def test_stride_ignores_time(write_video: Write):
    clip = decoded(write_video("a.mp4", noise_frames(20, 64, 64), fps=10), stride=4)
    assert (clip.source_indices, clip.fps) == ([0, 4, 8, 12, 16], pytest.approx(2.5, rel=1e-2))


def test_a_still_picture_is_a_clip_without_motion(write_video: Write):
    """A static scene decodes to equal frames; it must not be mistaken for a frozen container."""
    clip = decoded(write_video("still.mp4", noise_frames(1, 64, 64).repeat(32, axis=0)))
    assert len(clip.frames_FHWC) == 16
    assert clip.motion < 0.5


def test_motion_is_the_mean_change_of_a_pixel():
    frames = np.zeros((3, 2, 2, 3), dtype=np.uint8)
    frames[1], frames[2] = 10, 4
    assert motion(frames) == pytest.approx(8.0)
    assert motion(frames[:1]) == 0.0


def test_long_videos_give_the_first_frames_or_a_drawn_window(write_video: Write):
    path = write_video("a.mp4", noise_frames(64, 64, 64), fps=8)
    assert decoded(path, frames_max=8).source_indices == list(range(8))
    firsts = {decoded(path, frames_max=8, window="random", seed=seed).source_indices[0] for seed in range(4)}
    assert len(firsts) > 1
    again = decoded(path, frames_max=8, window="random", seed=1).source_indices
    assert again == decoded(path, frames_max=8, window="random", seed=1).source_indices
    assert len(again) == 8
    assert np.all(np.diff(again) == 1)


def test_a_zoom_is_cut_where_it_would_blur_but_never_below_the_shortest_clip(write_video: Write):
    path = write_video("a.mp4", noise_frames(40, 96, 96), fps=8)
    assert len(decoded(path, shot_type="zoom-in", size=48).frames_FHWC) == 23  # ln 2 / 0.25 s · 8 fps = 22.2 steps
    assert len(decoded(path, shot_type="zoom-in", size=96, frames_min=16).frames_FHWC) == 16
    assert len(decoded(path, shot_type="pan-left").frames_FHWC) == 40


def test_too_short_says_how_many_and_how_many_are_needed(write_video: Write):
    found = refused(write_video("a.mp4", noise_frames(30, 64, 64), fps=30), frames_min=16)
    assert found.reason == "too_short"
    assert "8 frames" in found.message
    assert "at least 16" in found.message


def test_a_slow_video_is_not_padded_with_repeats(write_video: Write):
    found = refused(write_video("a.mp4", noise_frames(30, 64, 64), fps=5))
    assert (found.reason, "5.00 frames a second" in found.message) == ("fps_too_low", True)


def test_files_that_are_no_video(tmp_path: Path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("this is not a video\n")
    Image.new("RGB", (1, 1)).save(tmp_path / "one.gif")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert refused(tmp_path / "empty.mp4").reason == "empty_file"
    assert refused(tmp_path / "text.mp4").reason == "not_a_video"
    assert refused(tmp_path / "one.gif").reason == "too_small"
    found = refused(tmp_path / "sound.mp4")
    assert (found.reason, "only audio" in found.message) == ("no_video_stream", True)


def test_av1_is_read_by_the_other_decoder(write_video: Write):
    path = write_video("a.mkv", noise_frames(20, 64, 64), codec="libsvtav1", options={"preset": "11"})
    clip = decoded(path)
    assert clip.decoder == "pyav"
    assert np.array_equal(clip.frames_FHWC, by_pyav(path)[clip.source_indices])


def test_cut_files(write_video: Write, tmp_path: Path):
    whole = write_video("a.mp4", noise_frames(60, 64, 64), options={"g": "12"}, fps=16).read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    assert refused(tmp_path / "no_index.mp4").reason == "not_a_video"
    mkv = write_video("a.mkv", noise_frames(320, 64, 64), options={"g": "12"}, fps=16).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(mkv[: len(mkv) // 2])
    assert refused(tmp_path / "cut.mkv").reason == "truncated"


def test_rotten_bytes_are_never_a_frozen_clip(write_video: Write, tmp_path: Path):
    data = bytearray(write_video("a.mp4", noise_frames(60, 64, 64), options={"g": "250"}).read_bytes())
    start = data.index(b"mdat")
    data[start + len(data) // 4 : start + len(data) // 4 + 4000] = bytes(4000)
    (tmp_path / "rot.mp4").write_bytes(data)
    assert refused(tmp_path / "rot.mp4").reason == "damaged"


def test_a_copy_trimmed_inside_a_group_of_pictures(write_video: Write, tmp_path: Path):
    """decord ignores the edit list, and would give the frames before it."""
    frames = noise_frames(133, 64, 64)
    path = write_video("a.mp4", frames, fps=25, options={"g": "200", "bf": "0"})
    with av.open(str(path)) as source, av.open(str(tmp_path / "trimmed.mp4"), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        early = round(96 / 25 / float(stream.time_base))
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, copy
                target.mux(packet)
    clip = decoded(tmp_path / "trimmed.mp4", fps=25.0, frames_min=30)
    assert clip.decoder == "pyav"
    assert clip.source_frames == 37
    apart = np.abs(clip.frames_FHWC[:, None].astype(int) - frames[None, 90:].astype(int)).mean(axis=(2, 3, 4))
    assert apart.argmin(axis=1).tolist() == list(range(6, 6 + len(clip.frames_FHWC)))
