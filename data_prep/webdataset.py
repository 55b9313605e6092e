"""WebDataset tars: samples are members with one key, the video by its suffix and the caption in .txt or .json.

Only headers are read here. A video is later read from its place in the tar; compressed tars have no such places.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_prep.files import VideoFile, explained, filesystem, is_remote, local_stamp, open_file, remote_stamp
from data_prep.problems import Problem
from infra.errors import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
CAPTION_BYTES_MAX = 1 << 20


@dataclass
class Sample:
    """The members of one key, in a row."""

    key: str
    video: VideoFile | None = None
    caption: str = ""
    problem: Problem | None = None
    suffixes: list[str] = field(default_factory=list)


def refuse_compressed(address: str) -> None:
    """Raises UserError for a compressed tar."""
    if address.lower().endswith(COMPRESSED):
        raise UserError(
            f"{address} is a compressed tar.",
            "Videos are read from their places in a tar, and a compressed one has none.",
            "Unpack it once, with gunzip for example, and name the .tar.",
        )


def read_samples(address: str, suffixes: tuple[str, ...]) -> Iterator[Sample]:
    """The samples of a tar in its order; where the tar breaks off, a last one says so.

    Raises:
        UserError: there is no such file, or it is no tar.
    """
    with explained(address):
        stamp = _stamp(address)
        with open_file(address) as handle:
            yield from _samples(address, stamp, handle, suffixes)


def _stamp(address: str) -> str:
    if not is_remote(address):
        return local_stamp(Path(address))
    system, path = filesystem(address)
    return remote_stamp(system.info(path))


def _samples(address: str, stamp: str, handle: IO[bytes], suffixes: tuple[str, ...]) -> Iterator[Sample]:
    current: Sample | None = None
    seen: set[str] = set()
    members = 0
    size = handle.seek(0, 2)
    handle.seek(0)
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            for member in tar:
                members += 1
                key, suffix = _key(member.name)
                if current is not None and current.key != key:
                    yield _finished(current)
                    current = None
                if current is None:
                    current = Sample(key)
                    if key in seen:
                        current.problem = Problem("duplicate_key", f"The key {key!r} was in this tar before.")
                    seen.add(key)
                _add(current, tar, member, suffix, address, stamp, size, suffixes)
    except (tarfile.TarError, EOFError) as error:
        if not members:
            raise UserError(f"{address} is not a tar: {error}.", "", "Check --source.") from None
        if current is not None:
            yield _finished(current)
        yield Sample(
            f"member {members + 1}",
            problem=Problem("broken_tar", f"The tar cannot be read beyond member {members}: {error}."),
        )
        return
    if current is not None:
        yield _finished(current)


def _key(name: str) -> tuple[str, str]:
    """Key and suffix: the name is cut at the first dot of its last part."""
    folder, base = posixpath.split(posixpath.normpath(name))
    stem, dot, suffix = base.partition(".")
    return posixpath.join(folder, stem), f".{suffix.lower()}" if dot else ""


def _add(
    sample: Sample,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    suffix: str,
    address: str,
    stamp: str,
    size: int,
    suffixes: tuple[str, ...],
) -> None:
    sample.suffixes.append(suffix)
    is_video = suffix in suffixes
    if is_video and (not member.isreg() or member.issparse()):
        sample.problem = Problem(
            "no_regular_member", f"{member.name!r} is no plain file in the tar; it was not opened."
        )
    elif is_video and member.offset_data + member.size > size:
        sample.problem = Problem("truncated_tar", f"The tar ends within {member.name!r}.")
    elif is_video and sample.video is not None:
        sample.problem = Problem("two_videos", f"The sample {sample.key!r} holds more than one video.")
    elif is_video:
        place = f"{stamp}:{member.offset_data}:{member.size}"
        sample.video = VideoFile(address, place, member.offset_data, member.size, suffix)
    elif suffix in (".txt", ".json") and member.isreg():
        sample.caption, problem = _caption(tar, member, suffix)
        sample.problem = sample.problem or problem


def _caption(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> tuple[str, Problem | None]:
    handle = tar.extractfile(member)
    assert handle is not None, "a plain file has bytes"
    return parse_caption(handle.read(CAPTION_BYTES_MAX), suffix, member.name)


def parse_caption(data: bytes, suffix: str, name: str) -> tuple[str, Problem | None]:
    """The caption in a .txt, or under `caption` in a .json."""
    try:
        text = data.decode("utf-8-sig")
        return " ".join(text.split()) if suffix == ".txt" else str(json.loads(text)["caption"]).strip(), None
    except (ValueError, KeyError, TypeError) as error:
        kind = "text" if suffix == ".txt" else "JSON with a caption"
        message = f"{name} beside the video cannot be read as {kind}: {type(error).__name__}: {error}."
        return "", Problem("bad_sidecar", message)


def _finished(sample: Sample) -> Sample:
    if sample.video is None and sample.problem is None:
        there = ", ".join(sample.suffixes)
        sample.problem = Problem("no_video", f"The sample {sample.key!r} holds no video, only {there}.")
    return sample
