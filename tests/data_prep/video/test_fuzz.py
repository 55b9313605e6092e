"""Files with damaged bytes: whatever a decoder does with them, the answer is clips that hold together, or a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import ShotMove
from data_prep.filters.filters import Filters
from data_prep.video.child_process import Child, ChildDiedError, ChildTimeoutError
from data_prep.video.decode import DecodedClip, DecodeRequest, Refused, decode_video, prepare
from infra.pocket.clips import Scene, render
from tests.data_prep.conftest import Write

MUTATIONS_EACH = 180
SECONDS_MAX = 10.0
KINDS = (
    ("a.mp4", "libx264", {"g": "12", "bf": "2"}),
    ("b.mp4", "libx265", {"x265-params": "log-level=none:keyint=12"}),
    ("c.mkv", "libx264", {"g": "12"}),
    ("d.webm", "libvpx-vp9", {"cpu-used": "8"}),
    ("e.avi", "mpeg4", {}),
    ("f.mkv", "libsvtav1", {"preset": "11", "svtav1-params": "lp=1"}),
)

Mutate = Callable[[bytearray, np.random.Generator], None]


def flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def flip_in_the_header(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 5))):
        data[int(rng.integers(min(1024, len(data))))] = int(rng.integers(256))


def flip_in_the_tail(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 5))):
        data[-1 - int(rng.integers(min(1500, len(data))))] = int(rng.integers(256))


def zero(data: bytearray, rng: np.random.Generator) -> None:
    first, count = int(rng.integers(len(data))), int(rng.integers(1, 400))
    data[first : first + count] = bytes(len(data[first : first + count]))


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(1, len(data))) :]


def leave_out(data: bytearray, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(data)))
    del data[first : first + int(rng.integers(1, 200))]


def double(data: bytearray, rng: np.random.Generator) -> None:
    first = int(rng.integers(len(data)))
    data[first:first] = data[first : first + int(rng.integers(1, 200))]


def noise(data: bytearray, rng: np.random.Generator) -> None:
    first, count = int(rng.integers(len(data))), int(rng.integers(4, 64))
    data[first : first + count] = rng.integers(0, 256, len(data[first : first + count]), np.uint8).tobytes()


def box_size(data: bytearray, rng: np.random.Generator) -> None:
    """The length of a box of an mp4, or some four bytes elsewhere."""
    names = [name for name in (b"moov", b"trak", b"stsz", b"stco", b"stts", b"mdat", b"avcC") if name in data]
    at = data.index(names[int(rng.integers(len(names)))]) - 4 if names else int(rng.integers(len(data) - 4))
    at = max(0, at)
    data[at : at + 4] = int(rng.choice([0, 1, 7, 2**31, 2**32 - 1])).to_bytes(4, "big")


MUTATIONS: tuple[Mutate, ...] = (
    flip, flip_in_the_header, flip_in_the_tail, zero, cut, leave_out, double, noise, box_size
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    kind: str
    clip: DecodedClip | None = None


def request(path: Path) -> DecodeRequest:
    return DecodeRequest("clip", path, 48, 8.0, None, 4, 16, "none", ShotMove(), "first", 0, Filters())


def outcome(child: Child[DecodeRequest, list[DecodedClip | Refused]], path: Path) -> Outcome:
    child.start(request(path))
    try:
        (answer,) = child.finish(SECONDS_MAX)
    except ChildDiedError:
        return Outcome("decoder_crashed")
    except ChildTimeoutError:
        return Outcome("decode_timeout")
    if isinstance(answer, Refused):
        assert answer.reason
        assert answer.message.strip()
        return Outcome(answer.reason)
    return Outcome(f"clip by {answer.decoder}", answer)


@pytest.fixture(scope="module")
def child() -> Iterator[Child[DecodeRequest, list[DecodedClip | Refused]]]:
    made: Child[DecodeRequest, list[DecodedClip | Refused]] = Child(decode_video, prepare)
    yield made
    made.close()


@pytest.mark.parametrize(("name", "codec", "options"), KINDS, ids=[f"{name}-{codec}" for name, codec, _ in KINDS])
def test_damaged_bytes(
    write_video: Write,
    tmp_path: Path,
    child: Child[DecodeRequest, list[DecodedClip | Refused]],
    name: str,
    codec: str,
    options: dict[str, str],
):
    frames = render(Scene("circle", "red", "moving left", "water", 3), 40, 96)
    whole = write_video(name, frames, fps=16, codec=codec, options=options).read_bytes()
    sound = outcome(child, tmp_path / name)
    assert sound.clip is not None
    counts: Counter[str] = Counter()
    for number in range(MUTATIONS_EACH):
        rng = np.random.default_rng([number, len(codec)])
        data = bytearray(whole)
        MUTATIONS[number % len(MUTATIONS)](data, rng)
        path = tmp_path / f"{number}{Path(name).suffix}"
        path.write_bytes(data)
        found = outcome(child, path)
        counts[found.kind] += 1
        if found.clip is not None:
            holds_together(found.clip)
        path.unlink()
    print(f"\n{name} {codec}: {dict(counts.most_common())}")
    assert counts.total() == MUTATIONS_EACH
    assert 0 < sum(count for kind, count in counts.items() if not kind.startswith("clip")) <= MUTATIONS_EACH
    again = outcome(child, tmp_path / name)  # the child is as good as new
    assert again.clip is not None
    assert np.array_equal(again.clip.frames_FHWC, sound.clip.frames_FHWC)


def holds_together(clip: DecodedClip) -> None:
    frames, size = len(clip.source_indices), request(Path()).size
    assert clip.frames_FHWC.shape == (frames, size, size, 3)
    assert 4 <= frames <= 16
    assert clip.source_indices == sorted(clip.source_indices)
    assert 0 <= clip.source_indices[0] <= clip.source_indices[-1] < clip.source_frames
    assert np.isfinite([clip.source_fps, clip.fps, clip.motion, clip.duration]).all()
    assert min(clip.source_width, clip.source_height) >= 8


def test_there_are_enough_of_them():
    assert MUTATIONS_EACH * len(KINDS) >= 500
