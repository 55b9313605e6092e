"""Videos fetched from their web addresses into the folder of videos.

A file is in its place when it is whole. Until then its beginning lies beside that place as `.NAME.part`, and
`.NAME.part.json` says what it is the beginning of: a later attempt, of this call or of another process, goes on from there
where the server has the same file still (RFC 9110, sections 13.1.5 If-Range and 14 Range Requests).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import random
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from infra import logs
from infra.config import Config, execution
from infra.errors import WorkError

if TYPE_CHECKING:
    import httpx

    from data_prep.addresses import Network

HEAD_BYTES = 512  # enough to tell a video from a page
PATIENCE_BYTES = 2**15
AGAIN = (408, 425, 429)
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the next file would fare no better
VIDEO_HEADS = (b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3", bytes.fromhex("3026b2758e66cf11"))
TS = ((0, 188), (4, 192))  # MPEG-TS: where the first packet begins, and how long one is

log = logs.get_logger("data_prep")


class DownloadConfig(Config):
    """How videos are fetched."""

    concurrency: int = execution(8, ge=1, le=256)
    """Files that are fetched at a time."""
    attempts: int = execution(5, ge=1)
    """For a file, where another may do better: 408, 425, 429, 5xx, time limits, broken connections, cut-off bodies."""
    connect_seconds: float = execution(10.0, gt=0)
    """For a connection, seconds."""
    read_seconds: float = execution(30.0, gt=0)
    """An answer that brings neither 32 KiB nor its end in so many seconds is broken off, and continued later."""
    retry_seconds: float = execution(1.0, ge=0)
    """Before the second attempt, seconds; doubles with each, less up to a half of it by chance."""
    retry_seconds_max: float = execution(60.0, ge=0)
    """The longest wait before an attempt, also where the server asks for more (Retry-After). Seconds."""
    bytes_max: int = execution(2 * 2**30, ge=1)
    """A larger file is refused."""
    allow_private: bool = execution(False)
    """Ask private networks and this machine too. Then whoever wrote the table chooses what is asked there."""
    redirects_max: int = execution(5, ge=0)
    """Redirects of a file that are followed."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch, and where it shall be when whole."""

    url: str
    path: Path


@dataclass(frozen=True)
class Undone:
    """Why a file is not there: a code and a sentence."""

    reason: str
    message: str


def download(wanted: list[Wanted], config: DownloadConfig, network: Network | None = None) -> dict[Path, Undone | None]:
    """Fetches what is missing; None says that the file is there, whole. Of several with one path the first counts.

    `network` is how other machines are reached; by default the public internet, or all that `allow_private` adds.

    Raises:
        WorkError: the disk is full or read-only. What was fetched stays, and the same call goes on from there.
    """
    from anyio.from_thread import start_blocking_portal

    from data_prep.addresses import Network, is_any, is_public

    started = time.monotonic()
    urls: dict[Path, str] = {}
    for item in wanted:
        urls.setdefault(item.path, item.url)
    missing = [Wanted(url, path) for path, url in urls.items() if not path.is_file()]
    work = _Work(config, network or Network(is_any if config.allow_private else is_public))
    if missing:
        with start_blocking_portal() as portal:  # a loop in a thread: the caller may be in a loop, as in a notebook
            portal.call(work.run, missing)
    reasons = Counter(undone.reason for undone in work.undone.values())
    log.info(
        f"Videos from the web: {len(missing) - len(work.undone)} fetched, {work.bytes / 1e6:.1f} MB in "
        f"{time.monotonic() - started:.1f} s; {len(urls) - len(missing)} were there; {len(work.undone)} not fetched"
        + "".join(f", {count} {reason}" for reason, count in sorted(reasons.items()))
    )
    return {path: work.undone.get(path) for path in urls}


class _Work:
    """One call's work: `undone` says which files failed, `bytes` how many bytes came."""

    def __init__(self, config: DownloadConfig, network: Network) -> None:
        self.config, self.network = config, network
        self.undone: dict[Path, Undone] = {}
        self.bytes = 0

    async def run(self, missing: list[Wanted]) -> None:
        from data_prep.addresses import client

        config = self.config
        left = iter(missing)  # shared: each worker takes the next

        async def worker() -> None:
            for item in left:
                if undone := await self.fetch(web, item):
                    self.undone[item.path] = undone
                bar.update()

        with logs.progress(len(missing), "Downloading", "video") as bar:
            async with client(self.network, config.concurrency, config.connect_seconds, config.read_seconds) as web:
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(config.concurrency, len(missing))):
                            group.create_task(worker())
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None

    async def fetch(self, web: httpx.AsyncClient, item: Wanted) -> Undone | None:
        """One file, in as many attempts as it needs and may have."""
        from data_prep.addresses import Failure

        attempt = 1
        while True:
            try:
                await self.attempt(web, item)
                return None
            except Failure as failure:
                if not failure.again:
                    return Undone(failure.reason, failure.message)
                if attempt == self.config.attempts:
                    return Undone(failure.reason, f"{failure.message} Given up after {attempt} attempts.")
                wait = _pause(attempt, failure.wait, self.config)
            except OSError as error:
                found = f"{item.path} cannot be written: {error.strerror}."
                if error.errno not in DISK:
                    return Undone("download_failed", found)
                raise WorkError(
                    found, "What was fetched stays.", "Make room, then run the same command: it goes on from there."
                ) from None
            await asyncio.sleep(wait)
            attempt += 1

    async def attempt(self, web: httpx.AsyncClient, item: Wanted) -> None:
        """Asks for the file, or for what is missing of it.

        Raises:
            Failure: it is not whole.
            OSError: it cannot be written.
        """
        from anyio import to_thread

        from data_prep.addresses import answer, failures, shown, web_url

        config, url = self.config, web_url(item.url)
        with _Part(item, shown(url)) as part:
            if item.path.is_file():  # from another process, since this call began
                return part.clear()
            if not part.is_whole():
                with failures(url):
                    async with (
                        asyncio.timeout(config.connect_seconds + config.read_seconds) as patience,
                        answer(web, url, part.range_headers(), config.redirects_max) as response,
                    ):
                        part.meet(response, config.bytes_max)
                        await self.receive(part, response, patience)
            part.check_video()
            await to_thread.run_sync(part.finish)
        return None

    async def receive(self, part: _Part, response: httpx.Response, patience: asyncio.Timeout) -> None:
        """The body into the part, watched as it comes."""
        import httpx

        from data_prep.addresses import Failure

        head_seen, progress_at, broken = False, 0, False
        try:
            async for chunk in response.aiter_raw():
                part.write(chunk)
                self.bytes += len(chunk)
                if part.size >= progress_at:
                    patience.reschedule(asyncio.get_running_loop().time() + self.config.read_seconds)
                    progress_at = part.size + PATIENCE_BYTES
                if not head_seen and part.size >= HEAD_BYTES:
                    part.check_video()
                    head_seen = True
                part.check_size(part.size, self.config.bytes_max)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            broken = True
        stated = part.note.size
        if part.size != stated and (broken or stated is not None):
            message = f"{part.name} ended after {part.size} bytes; the server announced {stated or 'more'}."
            if stated is not None and part.size > stated:
                part.clear()
            raise Failure("download_truncated", message, again=True)


@dataclass(frozen=True)
class _Note:
    """What a part is the beginning of, as the server said."""

    url: str
    etag: str = ""
    modified: str = ""
    size: int | None = None
    """Of the whole file, bytes; None where the server does not say."""

    @classmethod
    def of(cls, url: str, headers: httpx.Headers) -> Self:
        """Of an answer with the whole file. A weak ETag is left out, and Last-Modified less than a minute before the
        answer: another version of the file may have the same (RFC 9110, section 8.8)."""
        etag, modified, size = headers.get("ETag", ""), headers.get("Last-Modified", ""), headers.get("Content-Length")
        try:
            age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(modified)
            settled = age.total_seconds() >= 60
        except (KeyError, ValueError, TypeError):
            settled = False
        return cls(url, etag if etag[:1] == '"' else "", modified if settled else "", int(size) if size else None)


class _Part:
    """The beginning of a file on disk, held by one process at a time."""

    def __init__(self, item: Wanted, name: str) -> None:
        self.item, self.name = item, name
        self.path = item.path.with_name(f".{item.path.name}.part")
        self.note_path = item.path.with_name(f".{item.path.name}.part.json")
        self.note, self.declared = _Note(item.url), ""

    def __enter__(self) -> Self:
        from data_prep.addresses import Failure

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+b")
        mine = False
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        if not mine:
            self.file.close()
            raise Failure("download_failed", f"Another process fetches {self.name} to the same place.", again=True)
        self.size = self.file.seek(0, os.SEEK_END)
        with suppress(OSError, ValueError, TypeError):  # not there, or half written: then the part is of no use
            note = _Note(**json.loads(self.note_path.read_text()))
            self.note = note if note.url == self.item.url else self.note
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What cannot be continued is removed."""
        final = error is not None and not getattr(error, "again", True)
        if final or not (self.size and (self.is_whole() or self.range_headers())):
            self.note_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.file.close()

    def is_whole(self) -> bool:
        return self.size > 0 and self.size == self.note.size

    def range_headers(self) -> dict[str, str]:
        """Asks for what is missing if the file is the same still, else for the whole."""
        same = self.note.etag or self.note.modified
        return {"Range": f"bytes={self.size}-", "If-Range": same} if self.size and same else {}

    def meet(self, response: httpx.Response, bytes_max: int) -> None:
        """Makes the part ready for an answer's body.

        Raises:
            Failure: the answer is not what was asked for.
        """
        from data_prep.addresses import Failure

        status, headers = response.status_code, response.headers
        self.declared = headers.get("Content-Type", "")
        if status == 206 and (size := self._continued_by(headers)):
            self.note = replace(self.note, size=size)
        elif status == 200:
            self.clear()
            self.note = _Note.of(self.item.url, headers)
            self.note_path.write_text(json.dumps(asdict(self.note)))
        elif status in (206, 416):
            self.clear()
            message = f"{self.name} answers {status}, and not with what is missing of the file; it is asked for anew."
            raise Failure("download_failed", message, again=True)
        else:
            again = status in AGAIN or status >= 500
            message = f"{self.name} answers {status} {response.reason_phrase}".rstrip() + "."
            raise Failure("download_http_status", message, again, _retry_after(headers.get("Retry-After", "")))
        if headers.get("Content-Encoding", "identity") != "identity":
            message = f"{self.name} is sent packed ({headers['Content-Encoding']}), although asked for as it is."
            raise Failure("download_not_video", message)
        if self.note.size is None and "chunked" not in headers.get("Transfer-Encoding", ""):
            message = f"{self.name} comes without a length: a whole file cannot be told from a broken one."
            raise Failure("download_truncated", message)
        self.check_size(self.note.size or 0, bytes_max)

    def _continued_by(self, headers: httpx.Headers) -> int | None:
        """The size of the whole file, where a 206 answer brings what comes after the part."""
        same = headers.get("ETag", self.note.etag) == self.note.etag if self.note.etag else True
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if not span or not same or not self.size or int(span[1]) != self.size:
            return None
        return int(span[2]) if self.note.size in (None, int(span[2])) else None

    def clear(self) -> None:
        if self.size:
            self.file.truncate(0)
        self.size, self.note = 0, _Note(self.item.url)

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.size += len(data)

    def check_size(self, size: int, bytes_max: int) -> None:
        from data_prep.addresses import Failure

        if size > bytes_max:
            message = f"{self.name} has {size} bytes or more, and {bytes_max} are allowed (download.bytes_max)."
            raise Failure("download_too_large", message)

    def check_video(self) -> None:
        """The first bytes decide: many a server calls a video application/octet-stream, and a page a video."""
        from data_prep.addresses import Failure

        self.file.seek(0)
        head = self.file.read(HEAD_BYTES)
        if not _is_video(head):
            declared = f"; the server calls it {self.declared[:80]}" if self.declared else ""
            raise Failure(
                "download_not_video", f"{self.name} is no video: it begins with {_beginning(head)}{declared}."
            )

    def finish(self) -> None:
        """The part takes the file's place."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.note_path.unlink(missing_ok=True)
        os.replace(self.path, self.item.path)


def _is_video(head: bytes) -> bool:
    """MP4 and QuickTime, Matroska and WebM, AVI, FLV, Ogg, ASF, MPEG program and transport streams."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return head[4:12] not in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")  # pictures
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    transport = any(all(head[at : at + 1] == b"G" for at in (lead, lead + step, lead + 2 * step)) for lead, step in TS)
    return transport or head.startswith(VIDEO_HEADS)


def _beginning(head: bytes) -> str:
    """The first bytes, for a person."""
    start = head.lstrip()[:HEAD_BYTES].lower()
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return "an HTML page"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")) or head[8:12] == b"WEBP":
        return "a picture"
    text = head[:40].decode("ascii", "replace")
    return (
        f"the text {text!r}"
        if text.isprintable() and text
        else f"the bytes {head[:12].hex(' ')}"
        if head
        else "nothing"
    )


def _pause(attempt: int, asked: float, config: DownloadConfig) -> float:
    """Seconds until the next attempt."""
    back_off = config.retry_seconds * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
    return min(max(asked, back_off), config.retry_seconds_max)


def _retry_after(value: str) -> float:
    """Seconds from a Retry-After header: a number, or a date (RFC 9110, section 10.2.3)."""
    try:
        return float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
