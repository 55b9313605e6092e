"""Where files are: on this machine, at an address that fsspec knows (S3 and the like), or inside a tar on either."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from infra.errors import UserError

COPY_BYTES = 8 << 20  # one request each
# What file systems call that which changes with the bytes, the surest first.
STAMPS = [
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "Content-MD5",
    "checksum",
    "sha",
    "generation",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modified",
    "mtime",
    "created",
]
S3_VARIABLES = (
    "S3 takes AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL for a server other than Amazon's, and "
    "FSSPEC_S3_ANON=true for a public bucket."
)


@dataclass(frozen=True, slots=True)
class VideoFile:
    """Where a video's bytes are."""

    address: str
    """An absolute path, or an address such as s3://bucket/a.mp4."""
    stamp: str
    """Begins with the size in bytes; the same stamp, the same bytes. Of a member of a tar: the tar's, and its place."""
    offset: int = 0
    """Of a member of a tar: where its bytes begin."""
    size: int | None = None
    """Of a member of a tar, bytes; None is the whole file."""
    suffix: str = ""
    """Such as .mp4, for a copy."""

    @property
    def length(self) -> int | None:
        """How large the video is, bytes; None where its place does not say."""
        if self.size is not None:
            return self.size
        stated = self.stamp.split(":")[0]
        return int(stated) if stated.isdigit() else None

    @contextmanager
    def local(self, scratch: Path) -> Iterator[Path]:
        """The file itself where it is a whole one on this machine, else a copy below `scratch`, removed afterwards.

        Raises:
            OSError: it cannot be read, or has another size than it should.
        """
        if not is_remote(self.address) and self.size is None:
            yield Path(self.address)
            return
        with tempfile.NamedTemporaryFile(dir=scratch, suffix=self.suffix) as copy:
            self._copy(copy)
            copy.flush()
            yield Path(copy.name)

    def _copy(self, to: Any) -> None:
        copied = 0
        try:
            with open_file(self.address) as source:
                if self.offset:
                    source.seek(self.offset)
                while data := source.read(COPY_BYTES if self.size is None else min(self.size - copied, COPY_BYTES)):
                    to.write(data)
                    copied += len(data)
        except OSError:
            raise
        except Exception as error:  # a driver raises what it likes
            raise OSError(f"{self.address} cannot be read: {type(error).__name__}: {error}") from error
        if self.length not in (None, copied):
            raise OSError(f"{self.address} gave {copied} bytes of a video of {self.length}; it has changed meanwhile")


def normal(place: str | Path) -> str:
    """A path or an address as we write it: file:// is a path, and nothing ends in a slash."""
    address = str(place).removeprefix("file://")
    return address.rstrip("/") if re.search(r"[^/:]/+$", address) else address


def is_remote(address: str | Path) -> bool:
    """Whether it is an fsspec address and not a path."""
    return "://" in str(address)


def local_stamp(path: Path) -> str:
    """Size and time of change of a file on this machine."""
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}"


def remote_stamp(info: dict[str, Any]) -> str:
    """The size, and what changes with the bytes: a checksum, else the time of change.

    Where the file system says neither, the time of asking: such a file is read anew each time.
    """
    told = next((info[name] for name in STAMPS if info.get(name)), None)
    if told is None:
        told = f"asked {datetime.now(UTC).isoformat()}"
    elif isinstance(told, datetime):
        told = told.astimezone(UTC).isoformat()
    return f"{info.get('size')}:{str(told).strip(chr(34))}"


def open_file(address: str, ahead: int = 0) -> IO[bytes]:
    """Opens a path or an address for reading, with seek. Of a remote file `ahead` bytes more than asked are kept.

    Raises:
        Exception: whatever its driver raises; an OSError on this machine.
    """
    if not is_remote(address):
        return Path(address).open("rb")
    system, path = filesystem(address)
    cache = "readahead" if ahead else "none"
    return system.open(path, "rb", block_size=ahead or COPY_BYTES, cache_type=cache)  # type: ignore[no-any-return]


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, with nothing remembered of older listings, and the path in it.

    Raises:
        UserError: its scheme is unknown, the package that speaks it is missing, or it cannot be reached.
    """
    import fsspec

    if "::" in address:
        raise UserError(
            f"{address} is a chain of addresses.",
            "Files are read from one store each; '::' is fsspec's sign for several.",
            "Name the store itself, such as s3://bucket/folder.",
        )
    with explained(address):
        system, path = fsspec.core.url_to_fs(address)
        system.invalidate_cache()  # one process may read a source twice, and it may have changed
    return system, path


@contextmanager
def local_copy(address: str) -> Iterator[Path]:
    """A table on this machine, for as long as it is read.

    Raises:
        UserError: it is not there or cannot be read.
    """
    if not is_remote(address):
        yield Path(address)
        return
    with tempfile.TemporaryDirectory(prefix="animateflow-") as folder:
        copy = Path(folder) / Path(address).name
        with explained(address), open_file(address) as source, copy.open("wb") as to:
            while data := source.read(COPY_BYTES):
                to.write(data)
        yield copy


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turns what a file system's driver raises, which is of no common class, into one message.

    Raises:
        UserError: anything was raised within.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"There is nothing at {address}.", "", "Check the address.") from error
    except ImportError as error:
        raise UserError(
            f"{address} needs a package that is not installed: {error}.", "", "Install it, here and on every worker."
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{address} cannot be read: {str(error).rstrip('.')}.",
            "Addresses are written as fsspec has them, such as s3://bucket/folder.",
            "Check the address.",
        ) from error
    except Exception as error:
        kind = type(error).__name__
        denied = isinstance(error, PermissionError) or "Credential" in kind
        check = "Check the rights." if denied else "Check the address and the network."
        raise UserError(
            f"{address} cannot be read: {kind}: {str(error).rstrip('.')}.",
            "It asks for other rights than there are." if denied else "",
            f"{check} {S3_VARIABLES}" if address.startswith("s3") else check,
        ) from error
