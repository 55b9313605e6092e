"""How an artifact is written atomically: a lock, a draft beside it, a record written last, and one rename.

A process may be killed between any two of these; the next one completes a sealed draft and resumes another.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from infra.errors import UserError

RECORD = "record.json"
DRAFT = "draft.json"


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Holds the lock of an artifact's folder, and gives the folder of its draft.

    Raises:
        UserError: the folder cannot be written or locked, another run is writing it now, or its disk is full.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock", blocking=False, fallback_to_soft=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"Another run is writing {folder} now.", "", "Wait for it to end, or name another --out."
        ) from None
    except OSError as error:
        raise _not_lockable(folder, error) from None
    try:
        partial = partial_of(folder)
        finish_replacing(folder, partial)
        yield partial
    except Exception as error:
        if not is_disk_full(error):
            raise
        kept = "The files to resume from are kept."
        raise UserError(
            f"There is no room left on the disk of {folder}.",
            kept if partial.exists() else "Nothing of this run is left on it.",
            "Free some space, and run the same command again; or name an --out on another disk.",
        ) from None
    finally:
        # Removed while it is held: whoever opened it meanwhile sees that it has no name any more, and opens it anew.
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _not_lockable(folder: Path, error: OSError) -> UserError:
    if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        return UserError(
            f"The file system of {folder} has no file locks: {error.strerror}.",
            "Without them two runs could write the same artifact at once.",
            "Name an --out on a local disk, or mount the file system with locks.",
        )
    return UserError(
        f"{folder} cannot be written: {error.strerror}.", "", "Name an --out folder that you may write to."
    )


def finish_replacing(folder: Path, partial: Path) -> None:
    """Completes an interrupted replacement: a draft with a record loses its scratch files and takes the artifact's
    place; an old version that was moved away comes back if there is no new one."""
    before = before_of(folder)
    if (partial / RECORD).is_file() and (partial / DRAFT).is_file():
        asked = json.loads((partial / DRAFT).read_text(encoding="utf-8"))
        if asked["scratch"] is not None:
            shutil.rmtree(partial / asked["scratch"], ignore_errors=True)
        (partial / DRAFT).unlink()
    if not folder.exists() and (partial / RECORD).is_file():
        os.replace(partial, folder)
    elif not folder.exists() and before.is_dir():
        os.replace(before, folder)
    if before.is_dir():
        shutil.rmtree(before)


def partial_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def before_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def share(folder: Path) -> None:
    """Gives each file the record's permissions, which follow the umask; safetensors writes files for its user alone."""
    mode = (folder / RECORD).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON through a temporary file, flushed to disk before it takes its name."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def is_disk_full(error: Exception) -> bool:
    """Whether the error says so, by its errno or, from a library in Rust, in its text."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error)
