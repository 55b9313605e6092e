"""WebDataset tars as others write them: samples of neighbouring members."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def plain(name: str, size: int, mode: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """A member's header."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, mode
    return member


def write_tar(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of these names and bytes, in order."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            tar.addfile(plain(name, len(data)), io.BytesIO(data))
    return path
