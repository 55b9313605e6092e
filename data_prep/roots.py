"""The folder, or its address, that the rows of a source refer to. Nothing outside it is ever looked at."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from data_prep.files import VideoFile, explained, filesystem, is_remote, local_stamp, remote_stamp
from data_prep.problems import Problem


class Root(Protocol):
    """A folder of videos."""

    address: str

    def locate(self, candidates: list[str]) -> tuple[str, VideoFile] | Problem:
        """The first candidate that is a file below the root, and its path there; else what is wrong with them."""
        ...

    def names(self) -> Iterator[str]:
        """Every file below it that is not hidden, relative and in order."""
        ...

    def read(self, relative: str) -> bytes | Problem | None:
        """The bytes of a small file; None where there is none."""
        ...


def root_at(address: str | Path) -> Root:
    """The root at a path or an address."""
    return RemoteRoot(str(address)) if is_remote(address) else LocalRoot(Path(address))


class LocalRoot:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder.absolute())

    @cached_property
    def _base(self) -> Path:
        return self.folder.resolve()

    def path(self, candidates: list[str]) -> Path | Problem:
        """The first candidate that is a file, symbolic links resolved."""
        for relative in candidates:
            try:
                path = (self._base / relative).resolve()
                if not path.is_relative_to(self._base):
                    return Problem(
                        "outside_folder", f"{relative!r} leads out of the folder {self.folder}; it was not opened."
                    )
                if path.is_file():
                    return path
            except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
                return Problem("bad_path", f"{relative!r} cannot be a path: {error}.")
        return Problem("missing_file", f"There is no file {' or '.join(candidates)} in {self.folder}.")

    def locate(self, candidates: list[str]) -> tuple[str, VideoFile] | Problem:
        path = self.path(candidates)
        if isinstance(path, Problem):
            return path
        try:
            file = VideoFile(str(path), local_stamp(path), suffix=path.suffix)
        except OSError as error:
            return Problem("unreadable", f"{path} cannot be read: {error.strerror}.")
        return path.relative_to(self._base).as_posix(), file

    def target(self, relative: str) -> Path | None:
        """Where a file that is missing would go; None where that is outside of the folder."""
        try:
            path = (self._base / relative).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return path if path.is_relative_to(self._base) and path != self._base else None

    def names(self) -> Iterator[str]:
        for found in sorted(self.folder.rglob("*")):
            relative = found.relative_to(self.folder)
            if not any(part.startswith(".") for part in relative.parts) and not found.is_dir():
                yield relative.as_posix()

    def read(self, relative: str) -> bytes | Problem | None:
        path = self.path([relative])
        if isinstance(path, Problem):
            return None if path.reason == "missing_file" else path
        try:
            return path.read_bytes()
        except OSError as error:
            return Problem("unreadable", f"{path} cannot be read: {error.strerror}.")


class RemoteRoot:
    """A prefix of a store, listed once."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._system, self._base = filesystem(self.address)

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        """By path below the root."""
        with explained(self.address):
            found = self._system.find(self._base, detail=True)
        start = len(self._base.rstrip("/")) + 1
        return {path[start:]: info for path, info in found.items() if len(path) > start}

    def locate(self, candidates: list[str]) -> tuple[str, VideoFile] | Problem:
        for relative in candidates:
            key = posixpath.normpath(relative)
            if key.startswith(("../", "/")) or key in (".", "..") or "://" in relative:
                return Problem("outside_folder", f"{relative!r} leads out of {self.address}; it was not opened.")
            if key in self._files:
                stamp = remote_stamp(self._files[key])
                return key, VideoFile(f"{self.address}/{key}", stamp, suffix=posixpath.splitext(key)[1])
        return Problem("missing_file", f"There is no file {' or '.join(candidates)} at {self.address}.")

    def names(self) -> Iterator[str]:
        for name in sorted(self._files):
            if not any(part.startswith(".") for part in name.split("/")):
                yield name

    def read(self, relative: str) -> bytes | Problem | None:
        if relative not in self._files:
            return None
        try:
            return self._system.cat_file(f"{self._base}/{relative}")  # type: ignore[no-any-return]
        except OSError as error:
            return Problem("unreadable", f"{self.address}/{relative} cannot be read: {error}.")
