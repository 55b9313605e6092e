"""Videos fetched from their web addresses into the folder of videos.

A file is in its place when it is whole. Until then its beginning lies beside that place as `.NAME.part`, and
`.NAME.part.json` says what it is the beginning of: a later attempt, of this call or of another process, goes on from
there where the server has the same file still (RFC 9110, sections 13.1.5 If-Range and 14 Range Requests).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from data_prep.download.config import DownloadConfig, Failure
from infra import logs
from infra.errors import WorkError

if TYPE_CHECKING:
    import httpx

    from data_prep.download.addresses import Network

HEAD_BYTES = 512  # enough to tell a video from a page
PATIENCE_BYTES = 2**15
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # the next file would fare no better

log = logs.get_logger("data_prep")


@dataclass(frozen=True)
class Request:
    """A file to fetch, and its path when complete."""

    url: str
    path: Path


@dataclass(frozen=True)
class FailedDownload:
    """Why a file was not fetched: a code and a sentence."""

    reason: str
    message: str


def download(
    wanted: list[Request], config: DownloadConfig, network: Network | None = None
) -> dict[Path, FailedDownload | None]:
    """Fetches what is missing; None says that the file is there, whole. Of several with one path the first counts.

    `network` is how other machines are reached; by default the public internet, or all that `allow_private` adds.

    Raises:
        WorkError: the disk is full or read-only. What was fetched stays, and the same call resumes.
    """
    from anyio.from_thread import start_blocking_portal

    from data_prep.download.addresses import Network

    started = time.monotonic()
    urls: dict[Path, str] = {}
    for item in wanted:
        urls.setdefault(item.path, item.url)
    missing = [Request(url, path) for path, url in urls.items() if not path.is_file()]
    everywhere = Network(allowed=lambda address: True)
    work = _Work(config, network or (everywhere if config.allow_private else Network()))
    if missing:
        with start_blocking_portal() as portal:  # a loop in a thread: the caller may be in a loop, as in a notebook
            portal.call(work.run, missing)
    reasons = Counter(failed.reason for failed in work.failed.values())
    log.info(
        f"Videos from the web: {len(missing) - len(work.failed)} fetched, {work.bytes / 1e6:.1f} MB in "
        f"{time.monotonic() - started:.1f} s; {len(urls) - len(missing)} were there; {len(work.failed)} not fetched"
        + "".join(f", {count} {reason}" for reason, count in sorted(reasons.items()))
    )
    return {path: work.failed.get(path) for path in urls}


class _Work:
    """One call's work: `failed` says which files failed, `bytes` how many bytes came."""

    def __init__(self, config: DownloadConfig, network: Network) -> None:
        self.config, self.network = config, network
        self.failed: dict[Path, FailedDownload] = {}
        self.bytes = 0

    async def run(self, missing: list[Request]) -> None:
        from data_prep.download.addresses import transport

        left = iter(missing)  # shared: each worker takes the next

        async def worker() -> None:
            for item in left:
                if failed := await self.fetch(web, item):
                    self.failed[item.path] = failed
                bar.update()

        with logs.progress(len(missing), "Downloading", "video") as bar:
            async with transport(self.network, self.config.concurrency) as web:
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(min(self.config.concurrency, len(missing))):
                            group.create_task(worker())
                except BaseExceptionGroup as errors:
                    raise errors.exceptions[0] from None

    async def fetch(self, web: httpx.AsyncHTTPTransport, item: Request) -> FailedDownload | None:
        """One file, in as many attempts as it needs and may have."""
        for left in reversed(range(self.config.attempts)):
            try:
                await self.attempt(web, item)
                break
            except Failure as failure:
                if not (failure.again and left):
                    tried = f" Given up after {self.config.attempts} attempts." if failure.again else ""
                    return FailedDownload(failure.reason, failure.message + tried)
                wait = _pause(self.config.attempts - left, failure.wait, self.config)
            except OSError as error:
                found = f"{item.path} cannot be written: {error.strerror}."
                if error.errno in DISK:
                    raise WorkError(
                        found, "What was fetched stays.", "Free some space, then run the same command again."
                    ) from None
                return FailedDownload("download_failed", found)
            await asyncio.sleep(wait)
        return None

    async def attempt(self, web: httpx.AsyncHTTPTransport, item: Request) -> None:
        """Asks for the file, or for what is missing of it. Failure: it is not whole; OSError: it cannot be written."""
        from anyio import to_thread

        from data_prep.download.addresses import answer, failures, shown, web_url

        config, url = self.config, web_url(item.url)
        with _Part(item, shown(url)) as part:
            if not part.is_whole():
                with failures(part.name):
                    async with (
                        asyncio.timeout(config.connect_seconds + config.read_seconds) as patience,
                        answer(web, url, part.range_headers(), config) as response,
                    ):
                        part.meet(response, config.bytes_max)
                        await self.receive(part, response, patience)
            part.check_video()
            await to_thread.run_sync(part.finish)

    async def receive(self, part: _Part, response: httpx.Response, patience: asyncio.Timeout) -> None:
        """The body into the part, watched as it comes: its speed, its first bytes, its size, its end."""
        import httpx

        progress_at, broken = 0, False
        try:
            async for piece in response.aiter_raw():
                part.write(piece)
                self.bytes += len(piece)
                if part.size >= progress_at:
                    patience.reschedule(asyncio.get_running_loop().time() + self.config.read_seconds)
                    progress_at = part.size + PATIENCE_BYTES
                if part.size - len(piece) < HEAD_BYTES <= part.size:
                    part.check_video()
                part.check_size(part.size, self.config.bytes_max)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            broken = True
        stated = part.stated.size
        if part.size != stated and (broken or stated is not None):
            message = f"{part.name} ended after {part.size} bytes, and the server announced {stated or 'more'}."
            if stated is not None and part.size > stated:
                part.clear()
            raise Failure("download_truncated", message, again=True)


class _Part:
    """The beginning of a file on disk, held by one process at a time."""

    def __init__(self, item: Request, name: str) -> None:
        self.item, self.name, self.declared = item, name, ""
        self.path = item.path.with_name(f".{item.path.name}.part")
        self.note_path = item.path.with_name(f".{item.path.name}.part.json")

    def __enter__(self) -> Self:
        from data_prep.download.addresses import FileStated

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+b")
        mine = False
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        if not mine:
            self.file.close()
            raise Failure("download_failed", f"Another process fetches {self.name} to the same place.", again=True)
        self.size = os.fstat(self.file.fileno()).st_size
        self.stated = FileStated.read(self.note_path, self.item.url)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What no later attempt can go on from is removed."""
        final = isinstance(error, Failure) and not error.again
        if error is not None and (final or not (self.is_whole() or self.range_headers())):
            self.note_path.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        self.file.close()

    def is_whole(self) -> bool:
        return self.size > 0 and self.size == self.stated.size

    def range_headers(self) -> dict[str, str]:
        """Asks for what is missing if the file is the same still, else for the whole."""
        same = self.stated.etag or self.stated.modified
        return {"Range": f"bytes={self.size}-", "If-Range": same} if self.size and same else {}

    def meet(self, response: httpx.Response, bytes_max: int) -> None:
        """Makes the part ready for an answer's body, or raises Failure where the answer is not what was asked for."""
        from data_prep.download.addresses import FileStated, check_answer

        self.declared = response.headers.get("Content-Type", "")
        continued = self.stated.continued(self.size, response)
        if response.status_code in (206, 416) and continued is None:
            self.clear()
            message = f"{self.name} answers {response.status_code}, and not with the rest of the file begun before."
            raise Failure("download_failed", message, again=True)
        check_answer(self.name, response)
        if continued is None:
            self.clear()
            continued = FileStated.of(self.item.url, response.headers)
            self.note_path.write_text(json.dumps(asdict(continued)))
        self.stated = continued
        self.check_size(self.stated.size or 0, bytes_max)

    def clear(self) -> None:
        if self.size:
            self.file.truncate(0)
        self.size, self.stated = 0, replace(self.stated, etag="", modified="", size=None)

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.size += len(data)

    def check_size(self, size: int, bytes_max: int) -> None:
        if size > bytes_max:
            message = f"{self.name} has {size} bytes or more, and {bytes_max} are allowed (download.bytes_max)."
            raise Failure("download_too_large", message)

    def check_video(self) -> None:
        from data_prep.download.addresses import check_video

        self.file.flush()
        check_video(self.name, os.pread(self.file.fileno(), HEAD_BYTES, 0), self.declared)

    def finish(self) -> None:
        """The part takes the file's place."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.note_path.unlink(missing_ok=True)
        os.replace(self.path, self.item.path)


def _pause(attempt: int, asked: float, config: DownloadConfig) -> float:
    """Seconds until the next attempt."""
    back_off = config.retry_seconds * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
    return min(max(asked, back_off), config.retry_seconds_max)
