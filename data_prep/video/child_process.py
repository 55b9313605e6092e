"""A child process that may crash or hang, as video decoders do, without harm to the calling process.

The child is spawned, not forked. It answers one call at a time over a pipe, and is replaced when it dies or runs past
its time limit.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import psutil

Request = TypeVar("Request")
Answer = TypeVar("Answer")

LOOK_EVERY_SECONDS = 0.5
CLOCK_PER_WORK = 10.0  # a busy machine may give a child a tenth of a core, and its work is no worse for it
START_SECONDS_MAX = 1800.0


class ChildDiedError(Exception):
    """The child ended in the middle of a call; the exit code is that of the process, negative for a signal."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"exit code {exit_code}")


class ChildTimeoutError(Exception):
    """The call ran past its time, and the child was killed; the text says how it was measured."""


class ChildRaisedError(Exception):
    """The call raised something that is not part of its contract; the text is the exception's type and message."""


class Child(Generic[Request, Answer]):
    """Runs `function(request)` in a child process, one call at a time.

    `function` and `prepare`, which a new child calls first (for imports), are importable by name, and requests and
    answers can be pickled.
    """

    def __init__(self, function: Callable[[Request], Answer], prepare: Callable[[], None] | None = None) -> None:
        self._function = function
        self._prepare = prepare
        self._process: Any = None
        self._pipe: Connection | None = None
        self._work_before = self._started = 0.0
        self._starting = False
        self.worked = 0.0
        """CPU seconds of all answered calls."""

    def warm(self) -> None:
        """Starts the child, unless there is one, and returns at once."""
        if self._process is None or not self._process.is_alive():
            self.close()
            self._spawn()

    def start(self, request: Request) -> None:
        """Hands the request over and returns at once; `finish` has the answer."""
        self.warm()
        self.await_start()
        assert self._pipe is not None
        self._work_before, self._started = self._work_seconds(), time.monotonic()
        self._pipe.send(request)

    def finish(self, seconds_max: float) -> Answer:
        """The answer to the last request.

        `seconds_max` are seconds of work, of all the child's threads, so that a busy machine rejects nothing that an
        idle one accepts; ten times as long by the clock ends a child that waits for something that never comes.

        Raises:
            ChildTimeoutError: none came in time.
            ChildDiedError: the process ended instead.
            ChildRaisedError: the function raised.
        """
        good, answer = self._receive(seconds_max)
        self.worked += self._work_seconds() - self._work_before
        if not good:
            raise ChildRaisedError(answer)
        return answer  # type: ignore[no-any-return]

    def _receive(self, seconds_max: float) -> tuple[bool, Any]:
        assert self._pipe is not None, "finish without start"
        try:
            while not self._pipe.poll(LOOK_EVERY_SECONDS):
                work, clock = self._work_seconds() - self._work_before, time.monotonic() - self._started
                if work > seconds_max or clock > CLOCK_PER_WORK * seconds_max:
                    self.close()
                    raise ChildTimeoutError(f"{work:.0f} s of work, {clock:.0f} s by the clock")
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError, psutil.NoSuchProcess):
            self._process.join(5)
            exit_code = self._process.exitcode
            self.close()
            raise ChildDiedError(exit_code) from None
        return good, answer

    def _work_seconds(self) -> float:
        used = psutil.Process(self._process.pid).cpu_times()
        return float(used.user + used.system)

    def close(self) -> None:
        """Kills the child, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._function, self._prepare, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the child does
        self._starting = True

    def await_start(self) -> None:
        """Returns when the child that `warm` started is ready for a request."""
        if not self._starting:
            return
        self._starting = False
        self._work_before, self._started = 0.0, time.monotonic()
        good, what = self._receive(START_SECONDS_MAX)  # its imports are no part of any call
        if not good:
            self.close()
            raise RuntimeError(f"The child process cannot start: {what}")


def _serve(function: Callable[[Any], Any], prepare: Callable[[], None] | None, pipe: Connection) -> None:
    """The child's life: prepare, then answer until the pipe closes."""
    _die_with_parent()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # the decoders' chatter; what went wrong travels over the pipe
    pipe.send(_outcome(prepare) if prepare is not None else (True, None))
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(function, request))


def _outcome(function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    try:
        return True, function(*arguments)
    except Exception as error:  # noqa: BLE001 - handed to the parent, which decides
        return False, f"{type(error).__name__}: {error}"


def _die_with_parent() -> None:
    """A child that hangs in native code would outlive a parent that was killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
