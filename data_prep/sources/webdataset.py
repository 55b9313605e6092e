"""WebDataset tars: neighbouring members with one key are a sample, the caption in its .txt or .json.

A key is a member's name up to the first dot of its last part. Only headers and captions are read here; a video is read
later, from its place in the tar. Compressed tars have no such places.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_prep.problems import Problem, printable
from data_prep.sources.files import VideoFile, explained, filesystem, is_remote, local_stamp, open_file, remote_stamp
from data_prep.sources.roots import visible
from infra.errors import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
# How gzip, bzip2, xz, zstd and lz4 begin.
MAGIC = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18")
CAPTIONS = (".txt", ".json")
READ_BYTES_MAX = 1 << 20  # of a header with its extensions, and of a caption
AHEAD_BYTES = 64 << 10  # a header, a caption and the next header are one request
# What tarfile raises of a header that is none.
BROKEN = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError)


@dataclass
class Sample:
    """The members of one key, in a row."""

    key: str
    video: VideoFile | None = None
    captions: dict[str, bytes] = field(default_factory=dict)
    """By suffix."""
    caption: str = ""
    problem: Problem | None = None
    suffixes: list[str] = field(default_factory=list)

    def refuse(self, reason: str, message: str) -> None:
        """The first problem of a sample is its problem."""
        self.problem = self.problem or Problem(reason, message)


def refuse_compressed(address: str) -> None:
    """Raises UserError for the name of a compressed tar."""
    if address.lower().endswith(COMPRESSED):
        raise _compressed(address)


def _compressed(address: str) -> UserError:
    return UserError(
        f"{address} is a compressed tar.",
        "Videos are read from their places in a tar, and a compressed one has none. Videos are compressed already.",
        "Unpack it once, with gunzip for example, and name the .tar.",
    )


def read_samples(address: str, suffixes: tuple[str, ...]) -> Iterator[Sample]:
    """The samples of a tar in its order; where the tar breaks off, a last one says so.

    Raises:
        UserError: it is not there, cannot be read, or is compressed.
    """
    with explained(address):
        stamp = _stamp(address)
        opened = open_file(address, AHEAD_BYTES)
    with opened:
        yield from _Reader(address, stamp, _Tar(address, opened), suffixes).samples()


def _stamp(address: str) -> str:
    if not is_remote(address):
        return local_stamp(Path(address))
    system, path = filesystem(address)
    return remote_stamp(system.info(path))


class _Tar:
    """The file that tarfile reads, which would read as many bytes as a header says."""

    def __init__(self, address: str, file: IO[bytes]) -> None:
        self._address, self._file = address, file
        self.tell = file.tell

    def seek(self, place: int, whence: int = 0) -> int:
        with explained(self._address):
            return self._file.seek(place, whence)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= READ_BYTES_MAX:
            raise tarfile.ReadError(f"a header of {size} bytes")
        with explained(self._address):
            return self._file.read(size)


class _Reader:
    """Reads one tar."""

    def __init__(self, address: str, stamp: str, file: _Tar, suffixes: tuple[str, ...]) -> None:
        self._address, self._stamp, self._file, self._suffixes = address, stamp, file, suffixes
        self._size = file.seek(0, 2)
        file.seek(0)
        if MAGIC.match(file.read(10)):
            raise _compressed(address)
        file.seek(0)
        self._end = 0  # of what has been read

    def samples(self) -> Iterator[Sample]:
        current: Sample | None = None
        seen: set[str] = set()
        broken = ""
        try:
            for member in self._members():
                key, suffix = _key(member.name)
                if current is None or current.key != key:
                    if current is not None:
                        yield _finished(current)
                    current = Sample(key)
                    if key in seen:
                        current.refuse("duplicate_key", f"The key {key!r} was in this tar before.")
                    seen.add(key)
                self._add(current, member, suffix)
            broken = self._after_the_end()
        except BROKEN as error:
            broken = f"cannot be read beyond byte {self._end}: {error}"
        if current is not None:
            yield _finished(current)
        if broken and not (current and current.problem and current.problem.reason == "broken_tar"):
            message = f"The tar {posixpath.basename(self._address)} {broken}."
            yield Sample(f"byte {self._end}", problem=Problem("broken_tar", message))

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """Those that can be part of a sample, with the name in one spelling."""
        with tarfile.open(fileobj=self._file, mode="r:") as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                tar.members.clear()  # it would keep all
                if member.size < 0 or tar.offset <= self._end:
                    raise tarfile.ReadError("a member with a negative size")
                self._end = tar.offset
                member.name = _one_spelling(member.name)
                # as WebDataset has it, folders, names without a suffix and hidden names are no part of a sample
                name = posixpath.basename(member.name)
                if not member.isdir() and "." in name and visible(member.name.replace("../", "")):
                    yield member
                if member.offset_data + member.size > self._size:
                    return

    def _add(self, sample: Sample, member: tarfile.TarInfo, suffix: str) -> None:
        sample.suffixes.append(suffix)
        video = suffix in self._suffixes
        if not video and suffix not in CAPTIONS:
            return
        if member.name.startswith(("/", "../")):
            sample.refuse("outside_folder", f"{member.name!r} leads out of the tar; it was not opened.")
        elif not member.isreg() or member.issparse():
            sample.refuse("no_plain_file", f"{member.name!r} is no plain file in the tar; it was not opened.")
        elif member.offset_data + member.size > self._size:
            sample.refuse("broken_tar", f"The tar ends within {member.name!r}, at byte {self._size}.")
        elif not video:
            self._caption(sample, member, suffix)
        elif sample.video is not None:
            sample.refuse("two_videos", f"The sample {sample.key!r} holds more than one video.")
        else:
            stamp = f"{self._stamp}:{member.offset_data}:{member.size}"
            sample.video = VideoFile(self._address, stamp, member.offset_data, member.size, suffix)

    def _caption(self, sample: Sample, member: tarfile.TarInfo, suffix: str) -> None:
        if suffix in sample.captions:
            sample.refuse("two_captions", f"The sample {sample.key!r} holds more than one {suffix}.")
        elif member.size > READ_BYTES_MAX:
            sample.refuse("bad_sidecar", f"{member.name} is larger than {READ_BYTES_MAX >> 20} MiB.")
        else:
            self._file.seek(member.offset_data)
            sample.captions[suffix] = self._file.read(member.size)

    def _after_the_end(self) -> str:
        """What is wrong there: tarfile takes a header that is none, and no header at all, for the end."""
        if self._end > self._size:
            return f"ends at byte {self._size}, within a member"
        self._file.seek(self._end)
        rest = self._file.read(READ_BYTES_MAX)
        if len(rest) < tarfile.BLOCKSIZE:
            return f"ends at byte {self._size} without the mark of an end: more may have followed"
        if rest[: tarfile.BLOCKSIZE].strip(b"\0"):
            return f"has no header at byte {self._end}, where the next member should begin"
        if rest.strip(b"\0"):
            return f"goes on after the mark of its end at byte {self._end}: what follows was not read"
        return ""


def _one_spelling(name: str) -> str:
    return printable(posixpath.normpath(name))


def _key(name: str) -> tuple[str, str]:
    """Key and suffix of a member."""
    folder, base = posixpath.split(name)
    stem, _, suffix = base.partition(".")
    return posixpath.join(folder, stem), f".{suffix.lower()}"


def parse_caption(data: bytes, name: str) -> tuple[str, Problem | None]:
    """The caption in a .txt, or under `caption` in a .json."""
    plain = name.endswith(".txt")
    try:
        text = data.decode("utf-8-sig")
        if plain:
            return " ".join(text.split()), None
        caption = json.loads(text)["caption"]
        if not isinstance(caption, str):
            raise TypeError(f"the caption is {caption!r}, not text")
        caption.encode()  # JSON can spell half a character
        return caption.strip(), None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        kind = "text" if plain else "JSON with a caption"
        message = f"{name} beside the video cannot be read as {kind}: {type(error).__name__}: {error}."
        return "", Problem("bad_sidecar", printable(message))


def _finished(sample: Sample) -> Sample:
    if sample.video is None:
        there = ", ".join(sample.suffixes)
        message = f"The sample {sample.key!r} holds no video, only {there} (a key ends at the first dot of a name)."
        sample.refuse("no_video", message)
    for suffix in CAPTIONS:
        if suffix in sample.captions:
            sample.caption, problem = parse_caption(sample.captions[suffix], f"{sample.key}{suffix}")
            sample.problem = sample.problem or problem
            break
    sample.captions.clear()
    return sample
