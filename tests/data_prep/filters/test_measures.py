"""What filters measure, on pictures whose answer is known: drawn motion, jitter, light, text, cuts and copies."""

from __future__ import annotations

import itertools
import socket
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from components.clip.config import ClipModel
from data_prep.config import ShotMove
from data_prep.filters import measures
from data_prep.filters.filters import Filters
from data_prep.filters.measures import (
    CaptionMatch,
    brightness,
    flow_and_shake,
    measure,
    measure_text,
    near_duplicates,
    perceptual_hash,
    three,
)
from data_prep.video.decode import DecodedClip, DecodeRequest, decode_video
from infra.pocket.build import WEIGHTS
from infra.pocket.clips import CAMERA_RATE, Scene, random_scenes, render
from infra.video import UInt8, read_mp4, write_mp4

SCENE = Scene("circle", "red", "standing still", "grass", seed=3)
TEXT = Filters(text_share_max=1, watermark_share_max=1)


@pytest.fixture(scope="module")
def texture() -> UInt8:
    """Blots of about ten pixels, 512 high and 2048 wide."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 2048, 3), dtype=np.uint8)
    return np.asarray(cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX), dtype=np.uint8)


def filmed(texture: UInt8, places_F2: np.ndarray, size: int = 128) -> UInt8:
    """What a camera sees whose middle is at these places, pixels."""
    return np.stack([cv2.getRectSubPix(texture, (size, size), (float(x), float(y))) for x, y in places_F2])


def along(steps: np.ndarray) -> np.ndarray:
    return np.stack([200 + steps, np.full(len(steps), 256.0)], axis=1)


def through_a_file(frames_FHWC: UInt8, path: Path, crf: int = 20) -> UInt8:
    write_mp4(path, frames_FHWC, 8, crf)
    return read_mp4(path)


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@pytest.mark.parametrize(
    ("size", "pixels", "fps"), [(128, 2.0, 8.0), (128, 8.0, 8.0), (256, 8.0, 24.0), (64, 1.0, 8.0)]
)
def test_flow_is_the_speed_in_widths_a_second(texture: UInt8, size: int, pixels: float, fps: float):
    flow, shake = flow_and_shake(filmed(texture, along(pixels * np.arange(12)), size), fps)
    assert flow == pytest.approx(pixels * fps / size, rel=0.1)
    assert shake < 0.001


def test_flow_of_a_pan_and_of_stills_out_of_files(tmp_path: Path):
    flows = {}
    for camera in ("pan-left", "pan-right", "static"):
        drawn = render(replace(SCENE, camera=camera), 16, 128, fps=8)
        flows[camera], _ = flow_and_shake(through_a_file(drawn, tmp_path / f"{camera}.mp4"), 8.0)
    assert flows["pan-left"] == pytest.approx(CAMERA_RATE / 2, rel=0.1)  # the picture is two world units wide
    assert flows["pan-right"] == pytest.approx(CAMERA_RATE / 2, rel=0.1)
    assert flows["static"] < 0.001


@pytest.mark.parametrize("fps", [8.0, 16.0, 24.0])
def test_jitter_shakes_and_a_pan_does_not(texture: UInt8, fps: float):
    seconds = np.arange(round(4 * fps)) / fps
    pan = along(60 * seconds)
    jitter = np.random.default_rng(1).normal(0, 0.01 * 128, pan.shape)  # one per cent of the width on each axis
    _, steady = flow_and_shake(filmed(texture, pan), fps)
    _, shaken = flow_and_shake(filmed(texture, pan + jitter), fps)
    assert steady < 0.001
    assert shaken == pytest.approx(np.sqrt(2 * 6) * 0.01, rel=0.2)  # the variance of x - 2 y + z is six-fold


def test_shake_does_not_depend_on_the_frame_rate(texture: UInt8):
    """A hand that trembles three times a second."""
    found = []
    for fps in (8.0, 16.0, 24.0, 30.0):
        seconds = np.arange(round(4 * fps)) / fps
        found.append(flow_and_shake(filmed(texture, along(1.5 * np.sin(2 * np.pi * 3 * seconds))), fps)[1])
    assert max(found) < 1.3 * min(found)


def test_what_trembles_in_the_picture_is_no_shake(texture: UInt8):
    """A third of a still picture jumps about."""
    frames = filmed(texture, along(np.zeros(24)))
    tremble = np.random.default_rng(2).normal((900, 256), 3, (24, 2))
    frames[:, :, :42] = filmed(texture, tremble)[:, :, :42]
    flow, shake = flow_and_shake(frames, 8.0)
    assert flow > 0.05
    assert shake < 0.003  # 0.09 where all of the picture does


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_few_frames_have_what_can_be_measured(texture: UInt8, frames: int):
    flow, shake = flow_and_shake(filmed(texture, along(2.0 * np.arange(frames))), 8.0)
    assert flow == pytest.approx(0 if frames == 1 else 2 * 8 / 128, rel=0.1)
    assert shake < 0.001


@pytest.mark.parametrize(
    ("colour", "luma"), [((0, 0, 0), 0), ((255, 255, 255), 255), ((255, 0, 0), 76.2), ((0, 255, 0), 149.7)]
)
def test_brightness_is_luma(colour: tuple[int, int, int], luma: float):
    assert brightness(np.full((3, 16, 24, 3), colour, np.uint8)) == pytest.approx(luma, abs=0.1)


def test_only_what_is_asked_for_is_measured(texture: UInt8):
    frames = filmed(texture, along(np.arange(4.0)), 64)
    assert measure(frames, 8.0, Filters()) == {}
    assert measure_text(frames[:3], Filters()) == {}
    assert set(measure(frames, 8.0, Filters(brightness_min=1))) == {"brightness"}
    assert set(measure(frames, 8.0, Filters(shake_max=1, near_duplicate_bits=0))) == {"flow", "shake", "phash"}
    assert set(measure_text(frames[:3], Filters(text_share_max=0.1))) == {"text_share", "watermark_share"}


def test_copies_look_alike_and_other_clips_do_not(tmp_path: Path):
    scenes = list(random_scenes(8, seed=5))
    drawn = [render(scene, 16, 128, fps=8) for scene in scenes]
    hashes = [perceptual_hash(frames) for frames in drawn]
    for frames, phash in zip(drawn, hashes, strict=True):
        assert len(phash) == 48
        light = np.clip(frames.astype(np.int16) + 20, 0, 255).astype(np.uint8)
        small = np.stack([cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA) for frame in frames])
        for copy in (through_a_file(frames, tmp_path / "copy.mp4", crf=32), light, small):
            assert bits_apart(phash, perceptual_hash(copy)) <= 12
    assert min(bits_apart(one, other) for one, other in itertools.combinations(hashes, 2)) > 24


def test_the_hash_is_of_the_first_the_middle_and_the_last_frame():
    frames = render(replace(SCENE, motion="moving right"), 5, 64, fps=2)
    thirds = [perceptual_hash(frames[[place]])[:16] for place in (0, 2, 4)]
    assert perceptual_hash(frames) == "".join(thirds)
    assert len(set(thirds)) == 3


def brute_force(clip_ids: list[str], hashes: list[str], bits: int) -> dict[str, str]:
    found = {}
    for later in range(len(clip_ids)):
        near = (one for one in range(later) if bits_apart(hashes[one], hashes[later]) <= bits)
        if (first := next(near, None)) is not None:
            found[clip_ids[later]] = clip_ids[first]
    return found


@pytest.mark.parametrize("bits", [0, 1, 5, 12, 24])
def test_near_duplicates_are_those_of_brute_force(bits: int):
    """Random hashes, chains of ever more flipped bits, copies, and hashes that differ in few bits everywhere."""
    rng = np.random.default_rng(bits)
    codes = [rng.integers(0, 2, 192) for _ in range(120)]
    for _ in range(280):
        code = codes[int(rng.integers(len(codes)))].copy()
        code[rng.choice(192, int(rng.integers(0, bits + 4)), replace=False)] ^= 1
        codes.append(code)
    crowd = rng.integers(0, 2, 192)
    codes += [np.where(np.arange(192) < 20, rng.integers(0, 2, 192), crowd) for _ in range(100)]
    order = rng.permutation(len(codes))
    hashes = [np.packbits(codes[place]).tobytes().hex() for place in order]
    names = [f"clip{place}" for place in range(len(hashes))]
    wanted = brute_force(names, hashes, bits)
    assert 50 < len(wanted) < 450
    assert near_duplicates(names, hashes, bits) == wanted


def test_a_duplicate_of_a_duplicate_is_one():
    """Each is within four bits of the one before it only: the answer does not depend on which were there first."""
    chain = [f"{(1 << 4 * place) - 1:048x}" for place in range(4)]
    assert near_duplicates(["a", "b", "c", "d"], chain, 4) == {"b": "a", "c": "b", "d": "c"}
    assert near_duplicates(["a", "c", "d"], [chain[0], chain[2], chain[3]], 4) == {"d": "c"}
    assert near_duplicates([], [], 4) == {}
    assert near_duplicates(["a"], chain[:1], 4) == {}


def test_a_hundred_thousand_clips_are_not_compared_with_each_other():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (100_000, 24), dtype=np.uint8)
    codes[90_000:] = codes[:10_000]
    codes[90_000:, [3, 20]] ^= 0b11000001
    names = [str(place) for place in range(len(codes))]
    found = near_duplicates(names, [code.tobytes().hex() for code in codes], 12)
    assert found == {str(90_000 + place): str(place) for place in range(10_000)}


def written(frames_FHWC: UInt8, text: str, places: list[tuple[int, int]]) -> UInt8:
    """White letters, 28 pixels high, over the frames."""
    font = ImageFont.load_default(28)
    out = []
    for frame, place in zip(frames_FHWC, places, strict=True):
        picture = Image.fromarray(frame)
        ImageDraw.Draw(picture).text(
            place, text, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0)
        )
        out.append(np.asarray(picture))
    return np.stack(out)


@pytest.fixture(scope="module")
def three_frames() -> UInt8:
    """Without text, 256 pixels."""
    return render(replace(SCENE, camera="pan-left"), 3, 256, fps=2)


def test_text_is_found_where_it_is(three_frames: UInt8):
    assert measure_text(three_frames, TEXT) == {"text_share": 0.0, "watermark_share": 0.0}
    standing = measure_text(written(three_frames, "SUBTITLE", [(50, 200)] * 3), TEXT)
    area = ImageFont.load_default(28).getlength("SUBTITLE") * 28 / 256**2
    assert 0.6 * area < standing["text_share"] < 2 * area
    assert standing["watermark_share"] > 0.8 * standing["text_share"]


def test_text_that_moves_is_no_watermark(three_frames: UInt8):
    moving = measure_text(written(three_frames, "SUBTITLE", [(50, 20), (50, 110), (50, 200)]), TEXT)
    assert moving["text_share"] > 0.03
    assert moving["watermark_share"] == 0.0


@pytest.mark.parametrize("background", ["grass", "water", "bricks"])
def test_the_mark_of_stock_footage_is_found(background: str, tmp_path: Path):
    """Not on sand: there the mark is as pale as the ground."""
    for shape, motion in (("circle", "moving left"), ("triangle", "standing still"), ("cross", "moving up")):
        for domain, marked in (("stock", True), ("clean", False)):
            scene = Scene(shape, "blue", motion, background, seed=11, domain=domain)
            found = measure_text(through_a_file(render(scene, 3, 128, fps=2), tmp_path / "clip.mp4"), TEXT)
            assert (found["text_share"] > 0.1) is marked
            assert (found["watermark_share"] > 0.1) is marked


def test_text_is_found_without_network(three_frames: UInt8, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    measures._text_finder.cache_clear()
    assert measure_text(written(three_frames, "SUBTITLE", [(50, 200)] * 3), TEXT)["text_share"] > 0


def test_the_right_caption_fits_best():
    match = CaptionMatch(ClipModel(name=f"local-dir:{WEIGHTS / 'clip'}"), "cpu")
    scenes = list(random_scenes(6, seed=2, domain="clean"))
    for scene in scenes:
        frames = render(scene, 8, 64, fps=8)
        right = match(frames, scene.caption)
        wrong = [match(frames, other.caption) for other in scenes if other.caption != scene.caption]
        assert -100 <= min(wrong) < max(wrong) < right <= 100


@pytest.mark.slow
def test_real_footage(realvideo: Path):
    """None has a mark, and one that is drawn on is found."""
    on = TEXT.replace(flow_min=0, shake_max=1)
    found, marks = {}, 0
    for path in sorted(realvideo.glob("videos/*/*.m*")):
        (clip,) = decode_video(
            DecodeRequest(path.stem, path, 384, 8.0, None, 8, 16, "none", ShotMove(), "first", 0, on)
        )
        assert isinstance(clip, DecodedClip)
        found[path.stem] = clip.measures
        marked = written(three(clip.frames_FHWC), "shutterstock", [(100, 170)] * 3)
        marks += measure_text(marked, TEXT)["watermark_share"] > 0.005
    shirts = {"1000003", "1000006"}  # with a word on them, on people who stand still
    assert all(values["text_share"] < 0.005 for name, values in found.items() if name not in shirts)
    assert all(0.005 < found[name]["text_share"] < 0.025 for name in shirts)
    assert marks >= 11
    assert max(values["shake"] for name, values in found.items() if name != "1000008") < 0.01
    assert found["1000012"]["flow"] > 2 * found["1000009"]["flow"]  # a drive, and a flower in a breeze
