"""One logger family, `animateflow.*`, and progress bars that keep out of log files."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm


def get_logger(part: str) -> logging.Logger:
    """The logger `animateflow.<part>`; Prefect copies this family into the flow run's log."""
    return logging.getLogger(f"animateflow.{part}")


def setup_logging(verbose: bool = False) -> None:
    """Messages of `animateflow.*` to stderr, above any progress bar; for the command line."""
    root = logging.getLogger("animateflow")
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not root.handlers:
        handler = _AboveBars()
        handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        root.addHandler(handler)


def progress(total: int, title: str, unit: str = "it", initial: int = 0) -> tqdm[Any]:
    """A progress bar on a terminal; in a log file, a line at most every ten seconds."""
    interactive = sys.stderr.isatty()
    return tqdm(total=total, desc=title, unit=unit, initial=initial, mininterval=0.2 if interactive else 10.0)


class _AboveBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
