"""SHA256 of files, folders and plain values."""

from __future__ import annotations

import hashlib
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

RECENT_NS = 2 * 10**9
"""A file changed more recently may change again without another time of change."""


def sha256_file(path: Path, start: int = 0) -> str:
    """Hex digest of the file's bytes from `start` on; remembered in this process by the file's size and time of
    change, since base models of gigabytes are asked for again and again."""
    found = path.stat()
    if time.time_ns() - found.st_mtime_ns < RECENT_NS:
        return _digest(path, start)
    return _remembered(path.absolute(), start, found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev)


@lru_cache(maxsize=4096)
def _remembered(path: Path, start: int, *unchanged: int) -> str:
    return _digest(path, start)


def _digest(path: Path, start: int) -> str:
    with path.open("rb") as handle:
        handle.seek(start)
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex digest over the relative names and bytes of all files below the folder, hidden ones left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{sha256_file(path)}\0".encode())
    return digest.hexdigest()


def sha256_path(path: Path) -> str:
    """`sha256_folder` of a folder, `sha256_file` of a file."""
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def sha256_json(value: Any) -> str:
    """Hex digest of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
