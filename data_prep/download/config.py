"""How videos are fetched, and how an attempt fails."""

from __future__ import annotations

from infra.config import Config, execution


class DownloadConfig(Config):
    """How videos are fetched."""

    concurrency: int = execution(8, ge=1, le=256)
    """Files that are fetched at a time."""
    attempts: int = execution(5, ge=1, le=100)
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


class Failure(Exception):
    """An attempt that failed. `again`: another may do better, after the `wait` (seconds) that the server asks for."""

    def __init__(self, reason: str, message: str, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.message, self.again, self.wait = reason, message, again, wait
