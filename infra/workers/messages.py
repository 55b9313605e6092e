"""Messages between a driver and its workers (`infra.workers.workers`): files in a folder that they share.

Workers send lines and log messages to the driver; the driver sends a request to stop. What workers print stays in
Ray's log files.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def workers_folder(folder: Path) -> Path:
    """The folder of the messages and of Ray Train's files."""
    return folder / "workers"


def open_mailbox(folder: Path) -> None:
    """On the driver: creates an empty `workers_folder`."""
    remove_mailbox(folder)
    workers_folder(folder).mkdir(parents=True)


def remove_mailbox(folder: Path) -> None:
    """On the driver: removes `workers_folder`, if there is one."""
    shutil.rmtree(workers_folder(folder), ignore_errors=True)


def send(folder: Path, line: str) -> None:
    """On a worker: sends a line to the driver."""
    _append(folder, {"line": line})


def log_to_driver(folder: Path, level: int) -> None:
    """On a worker: sends log messages of `level` and above to the driver, which logs them."""
    root = logging.getLogger("animateflow")
    root.handlers = [_DriverHandler(folder)]
    root.setLevel(level)


def request_stop(folder: Path, reason: str) -> None:
    """On the driver: asks the workers to stop. A second request changes nothing."""
    path = workers_folder(folder) / "stop"
    if not path.exists():
        path.write_text(reason, encoding="utf-8")


def stop_requested(folder: Path) -> str | None:
    """On a worker: the reason of the request to stop, None without a request."""
    try:
        return (workers_folder(folder) / "stop").read_text(encoding="utf-8") or None
    except OSError:
        return None


class Inbox:
    """On the driver: the messages of all workers, each delivered once."""

    def __init__(self, folder: Path) -> None:
        self._path, self._read = workers_folder(folder) / "messages.jsonl", 0

    def deliver(self, on_line: Callable[[str], None]) -> None:
        """Delivers new messages: lines to `on_line`, log messages to the logger of their name."""
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            handle.seek(self._read)
            whole, newline, _ = handle.read().rpartition(b"\n")  # the last line may not be whole yet
        self._read += len(whole) + len(newline)
        for message in whole.splitlines():
            match json.loads(message):
                case {"line": line}:
                    on_line(line)
                case {"log": [name, level, text]}:
                    logging.getLogger(name).log(level, "%s", text)


class _DriverHandler(logging.Handler):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        _append(self._folder, {"log": [record.name, record.levelno, self.format(record)]})


def _append(folder: Path, message: dict[str, Any]) -> None:
    with (workers_folder(folder) / "messages.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(message) + "\n")
