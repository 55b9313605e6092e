"""What a driver and its workers tell each other while `infra.workers.workers` runs them: files in a folder they share.

Workers leave lines for the driver and what they log; the driver leaves its wish that they stop. What workers print
stays in Ray's own logs, where Ray's remarks are ten times as many.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def place_in(folder: Path) -> Path:
    """Where it all lies, and Ray Train's own files."""
    return folder / "workers"


def open_place(folder: Path) -> None:
    """On the driver: a fresh place."""
    forget(folder)
    place_in(folder).mkdir(parents=True)


def forget(folder: Path) -> None:
    """Removes what was told in `folder`."""
    shutil.rmtree(place_in(folder), ignore_errors=True)


def tell(folder: Path, line: str) -> None:
    """On a worker: a line for the driver."""
    _leave(folder, {"line": line})


def log_to_driver(folder: Path, level: int) -> None:
    """On a worker: what it logs from `level` on is logged by the driver."""
    root = logging.getLogger("animateflow")
    root.handlers = [_ToDriver(folder)]
    root.setLevel(level)


def ask_to_stop(folder: Path, reason: str) -> None:
    """On the driver."""
    path = place_in(folder) / "stop"
    if not path.exists():
        path.write_text(reason, encoding="utf-8")


def stop_asked(folder: Path) -> str | None:
    """On a worker: why the driver wants it to stop; None while it does not."""
    try:
        return (place_in(folder) / "stop").read_text(encoding="utf-8") or None
    except OSError:
        return None


class Inbox:
    """On the driver: what workers have told and was not handed on yet."""

    def __init__(self, folder: Path) -> None:
        self._path, self._read = place_in(folder) / "told", 0

    def hand_on(self, hear: Callable[[str], None]) -> None:
        """Lines to `hear`, log messages to the logger of their name."""
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            handle.seek(self._read)
            whole, newline, _ = handle.read().rpartition(b"\n")  # the last line may not be whole yet
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            match json.loads(line):
                case {"line": said}:
                    hear(said)
                case {"log": [name, level, message]}:
                    logging.getLogger(name).log(level, "%s", message)


class _ToDriver(logging.Handler):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        _leave(self._folder, {"log": [record.name, record.levelno, self.format(record)]})


def _leave(folder: Path, what: dict[str, Any]) -> None:
    with (place_in(folder) / "told").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(what) + "\n")
