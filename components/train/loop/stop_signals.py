"""Ctrl-C and SIGTERM as a request to stop: the step in progress is finished and a checkpoint saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from infra.logs import get_logger

log = get_logger("components")


@dataclass
class StopRequest:
    """`name` is the signal that asked the run to stop, None before one did."""

    name: str | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM inside the block into a request to stop; a second one acts as usual.

    Outside the main thread signals cannot be caught, and the block changes nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        log.warning("%s: finishing this step and saving.", request.name)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
