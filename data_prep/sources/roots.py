"""The folder, or its address, that the rows of a source refer to. Nothing outside it is ever looked at."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from data_prep.problems import Problem
from data_prep.sources.files import VideoFile, explained, filesystem, is_remote, remote_stamp

READ_BYTES_MAX = 1 << 20  # of a caption
READ_AT_ONCE = 256


class Root(Protocol):
    """A folder of videos."""

    address: str

    def locate(self, candidates: list[str]) -> tuple[str, VideoFile] | Problem:
        """The first candidate that is a file below the root, and its path there; else what is wrong with them."""
        ...

    def target(self, relative: str) -> Path | None:
        """Where a missing file would go; None where nothing can be put."""
        ...

    def names(self) -> list[str]:
        """Every file below it that is not hidden: relative, sorted.

        Raises:
            UserError: it cannot be listed.
        """
        ...

    def read(self, names: list[str]) -> Iterator[tuple[str, bytes | Problem]]:
        """The bytes of small files, each with its name."""
        ...


def root_at(address: str) -> Root:
    """The root at a path or an address.

    Raises:
        UserError: the address cannot be reached.
    """
    return RemoteRoot(address) if is_remote(address) else LocalRoot(address)


def visible(name: str) -> bool:
    """Whether no part of a path begins with a dot."""
    return not any(part.startswith(".") for part in name.split("/"))


class LocalRoot:
    """A folder on this machine. Symbolic links count as what they lead to."""

    def __init__(self, folder: str) -> None:
        self.address = os.path.realpath(folder)
        self._inside = self.address.rstrip("/") + "/"
        self._folders: dict[str, str] = {}  # as given → real; a table names few folders many times

    def locate(self, candidates: list[str]) -> tuple[str, VideoFile] | Problem:
        for relative in candidates:
            try:
                path = self._real(relative)
                if not self._holds(path) or "://" in relative:
                    return _outside(relative, self.address)
                found = os.lstat(path)
                if stat.S_ISLNK(found.st_mode):
                    path = os.path.realpath(path)
                    if not self._holds(path):
                        return _outside(relative, self.address)
                    found = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                return Problem("unreadable", f"{relative!r} in {self.address} cannot be read: {error.strerror}.")
            except (OSError, ValueError) as error:  # too long, a NUL, a loop of links
                return Problem("bad_path", f"{relative!r} cannot be a path: {error}.")
            if stat.S_ISREG(found.st_mode):
                stamp = f"{found.st_size}:{found.st_mtime_ns}"
                file = VideoFile(path, stamp, suffix=os.path.splitext(path)[1])
                return path.removeprefix(self._inside), file
        return _missing(candidates, self.address)

    def _real(self, relative: str) -> str:
        """The path with all links resolved but the last."""
        folder, name = os.path.split(os.path.join(self.address, relative))
        if name in ("", ".", ".."):
            return os.path.realpath(os.path.join(folder, name))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)

    def _holds(self, path: str) -> bool:
        return path == self.address or path.startswith(self._inside)

    def target(self, relative: str) -> Path | None:
        try:
            path = self._real(relative)
            path = os.path.realpath(path) if os.path.islink(path) else path
        except (OSError, ValueError):
            return None
        return Path(path) if path.startswith(self._inside) else None

    def names(self) -> list[str]:
        found = []
        with explained(self.address):
            for folder, folders, files in os.walk(self.address, onerror=_raise):
                folders[:] = [name for name in folders if visible(name)]
                below = (folder.rstrip("/") + "/").removeprefix(self._inside)
                found += [below + name for name in files if visible(name)]
        return sorted(found)

    def read(self, names: list[str]) -> Iterator[tuple[str, bytes | Problem]]:
        for name in names:
            found = self.locate([name])
            if isinstance(found, Problem):
                yield name, found
                continue
            try:
                with open(found[1].address, "rb") as file:
                    yield name, _small(name, file.read(READ_BYTES_MAX + 1))
            except OSError as error:
                yield name, Problem("unreadable", f"{name!r} in {self.address} cannot be read: {error.strerror}.")


class RemoteRoot:
    """A folder of a store, listed once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._system, base = filesystem(address)
        self._base = base.rstrip("/")

    @cached_property
    def _stamps(self) -> dict[str, str | None]:
        """Of every file, by its path below the root; None where the listing does not tell sizes."""
        # a listing of links is walked folder by folder, and one that fails would be left out
        whole = {"on_error": "raise"} if self.address.startswith("http") else {}
        with explained(self.address):
            found = self._system.find(self._base, detail=True, **whole)
            start = len(self._base) + 1
            stamps = {
                path[start:]: None if info.get("size") is None else remote_stamp(info)
                for path, info in found.items()
                if path.startswith(f"{self._base}/")  # of a file, the listing is the file
            }
            if not stamps:
                raise FileNotFoundError(self.address)
            self._system.invalidate_cache()  # it would keep all that it was told of every file
        return stamps

    def locate(self, candidates: list[str]) -> tuple[str, VideoFile] | Problem:
        for relative in candidates:
            key = self._key(relative)
            if isinstance(key, Problem):
                return key
            if key in self._stamps:
                return self._file(key)
        return _missing(candidates, self.address)

    def locate_one(self, relative: str) -> VideoFile | None:
        """One file, without a listing of all.

        Raises:
            UserError: the store cannot be reached.
        """
        key = self._key(relative)
        if isinstance(key, Problem):
            return None
        with explained(self.address):
            try:
                info = self._system.info(f"{self._base}/{key}")
            except FileNotFoundError:
                return None
        return None if info.get("type") == "directory" else self._video(key, info)

    def _key(self, relative: str) -> str | Problem:
        key = posixpath.normpath(relative)
        if key.startswith(("../", "/")) or key == ".." or "://" in relative:
            return _outside(relative, self.address)
        if "::" in key:
            return Problem("bad_path", f"{relative!r} cannot be read: '::' is fsspec's sign for a chain of addresses.")
        return key

    def _file(self, key: str) -> tuple[str, VideoFile] | Problem:
        stamp = self._stamps[key]
        if stamp is not None:
            return key, VideoFile(f"{self.address}/{key}", stamp, suffix=posixpath.splitext(key)[1])
        try:
            return key, self._video(key, self._system.info(f"{self._base}/{key}"))
        except Exception as error:  # noqa: BLE001 - a driver raises what it likes
            return Problem("unreadable", f"{self.address}/{key} cannot be read: {type(error).__name__}: {error}.")

    def _video(self, key: str, info: dict[str, Any]) -> VideoFile:
        return VideoFile(f"{self.address}/{key}", remote_stamp(info), suffix=posixpath.splitext(key)[1])

    def target(self, relative: str) -> Path | None:
        return None

    def names(self) -> list[str]:
        return sorted(name for name in self._stamps if visible(name))

    def read(self, names: list[str]) -> Iterator[tuple[str, bytes | Problem]]:
        empty = {name for name in names if (self._stamps[name] or "").startswith("0:")}  # nothing to ask a range of
        yield from ((name, b"") for name in names if name in empty)
        full = [name for name in names if name not in empty]
        for first in range(0, len(full), READ_AT_ONCE):
            some = full[first : first + READ_AT_ONCE]
            with explained(self.address):
                paths = [f"{self._base}/{name}" for name in some]
                found = self._system.cat_ranges(paths, 0, READ_BYTES_MAX + 1, on_error="return")  # all at once
            for name, data in zip(some, found, strict=True):
                if isinstance(data, Exception):
                    what = f"{type(data).__name__}: {data}"
                    yield name, Problem("unreadable", f"{self.address}/{name} cannot be read: {what}.")
                else:
                    yield name, _small(name, data)


def _small(name: str, data: bytes) -> bytes | Problem:
    if len(data) > READ_BYTES_MAX:
        return Problem("bad_sidecar", f"{name} beside the video is larger than {READ_BYTES_MAX >> 20} MiB.")
    return data


def _outside(relative: str, address: str) -> Problem:
    return Problem("outside_folder", f"{relative!r} leads out of {address}; it was not opened.")


def _missing(candidates: list[str], address: str) -> Problem:
    return Problem("missing_file", f"There is no file {' or '.join(candidates)} in {address}.")


def _raise(error: OSError) -> None:
    raise error
