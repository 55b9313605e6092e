"""Where files are: on this machine, at an fsspec address (S3 and the like), or inside a tar on either."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infra.errors import UserError

COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class VideoFile:
    """Where a video's bytes are."""

    address: str
    """An absolute path, or an address such as s3://bucket/a.mp4."""
    stamp: str
    """Begins with the size in bytes; the same stamp, the same bytes."""
    offset: int = 0
    """Of a member of a tar: where its bytes begin."""
    size: int | None = None
    """Of a member of a tar, bytes; None is the whole file."""
    suffix: str = ""
    """Such as .mp4, for a copy."""

    @property
    def length(self) -> int | None:
        """How large the video is; None where its place does not say."""
        if self.size is not None:
            return self.size
        stated = self.stamp.split(":")[0]
        return int(stated) if stated.isdigit() else None

    @contextmanager
    def local(self, scratch: Path) -> Iterator[Path]:
        """The file itself where it is a whole one on this machine, else a copy below `scratch`, removed afterwards.

        Raises:
            OSError: it cannot be read, or has fewer bytes than it should.
        """
        if not is_remote(self.address) and self.size is None:
            yield Path(self.address)
            return
        with tempfile.NamedTemporaryFile(dir=scratch, suffix=self.suffix) as copy:
            with open_file(self.address) as source:
                source.seek(self.offset)
                self._copy(source, copy)
            copy.flush()
            yield Path(copy.name)

    def _copy(self, source: IO[bytes], to: Any) -> None:
        if self.size is None:
            shutil.copyfileobj(source, to, COPY_BYTES)
            return
        left = self.size
        while left:
            data = source.read(min(left, COPY_BYTES))
            if not data:
                raise OSError(f"{self.address} ends before the video does")
            to.write(data)
            left -= len(data)


def is_remote(address: str | Path) -> bool:
    """Whether it is an fsspec address and not a path."""
    return "://" in str(address)


def local_stamp(path: Path) -> str:
    """Size and time of change of a file on this machine."""
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}"


def remote_stamp(info: dict[str, Any]) -> str:
    """Size, and whatever else the file system says that changes with the bytes."""
    names = ("ETag", "etag", "md5Hash", "checksum", "LastModified", "last_modified", "mtime", "created")
    told = next((str(info[name]) for name in names if info.get(name)), "")
    return f"{info.get('size')}:{told}"


def open_file(address: str) -> IO[bytes]:
    """Opens a path or an address for reading, with seek.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_remote(address):
        return Path(address).open("rb")
    system, path = filesystem(address)
    return system.open(path, "rb")  # type: ignore[no-any-return]


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it.

    Raises:
        UserError: its scheme is unknown, or the package that speaks it is missing.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)  # type: ignore[no-any-return]
    except (ValueError, ImportError, TypeError) as error:
        raise UserError(
            f"{address} cannot be opened: {error}.",
            "Addresses are those of fsspec, such as s3://bucket/folder; some need a package of their own.",
            "Check the address, or install what it names.",
        ) from None


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """A small file, such as a table, on this machine.

    Raises:
        UserError: it is not there or cannot be read.
    """
    if not is_remote(address):
        yield Path(address)
        return
    system, path = filesystem(address)
    with tempfile.TemporaryDirectory(prefix="animateflow-") as folder:
        copy = Path(folder) / Path(path).name
        with explained(address):
            system.get_file(path, str(copy))
        yield copy


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turns what a remote file system raises into one message."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"There is nothing at {address}.", "", "Check the address.") from None
    except PermissionError as error:
        raise UserError(
            f"{address} may not be read: {error}.",
            "The store knows no such key, or the key has no right to it.",
            "Check the credentials (for S3 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).",
        ) from None
    except Exception as error:
        # botocore's errors, such as of missing credentials, are of no common class that could be named without it
        if isinstance(error, UserError) or (
            not isinstance(error, OSError) and "botocore" not in type(error).__module__
        ):
            raise
        raise UserError(
            f"{address} cannot be read: {error}.", "", "Check the address, the network and the credentials."
        ) from None
