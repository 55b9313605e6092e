"""A child process that may crash or hang: video decoders do both, and take no thread of ours with them.

The child is spawned, not forked, answers one call at a time over a pipe, and is killed and made anew when it dies or
runs past its time.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class ChildDiedError(Exception):
    """The child ended in the middle of a call; the exit code is that of the process, negative for a signal."""

    def __init__(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        super().__init__(f"exit code {exit_code}")


class ChildLateError(Exception):
    """The call ran past its time, and the child was killed."""


class ChildRaisedError(Exception):
    """The call raised something that is not part of its contract; the text is the exception's type and message."""


class Child(Generic[Request, Answer]):
    """Runs `function(request)` in a child process, one call at a time.

    `function` is importable by name, and requests and answers can be pickled.
    """

    def __init__(self, function: Callable[[Request], Answer]) -> None:
        self._function = function
        self._process: Any = None
        self._pipe: Connection | None = None

    def start(self, request: Request) -> None:
        """Hands the request over and returns at once; `finish` has the answer."""
        if self._pipe is None:
            self._spawn()
        assert self._pipe is not None
        try:
            self._pipe.send(request)
        except (BrokenPipeError, ConnectionResetError):
            self.close()  # it died between two calls
            self._spawn()
            self._pipe.send(request)

    def finish(self, seconds_max: float) -> Answer:
        """The answer to the last request.

        Raises:
            ChildLateError: none came within `seconds_max`.
            ChildDiedError: the process ended instead.
            ChildRaisedError: the function raised.
        """
        assert self._pipe is not None, "finish without start"
        try:
            if not self._pipe.poll(seconds_max):
                self.close()
                raise ChildLateError
            good, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            exit_code = self._process.exitcode
            self.close()
            raise ChildDiedError(exit_code) from None
        if not good:
            raise ChildRaisedError(answer)
        return answer  # type: ignore[no-any-return]

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
        self._process = context.Process(target=_serve, args=(self._function, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the child does


def _serve(function: Callable[[Any], Any], pipe: Connection) -> None:
    """The child's life: answer until the pipe closes."""
    _die_with_parent()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # the decoders' chatter; what went wrong travels over the pipe
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(request))
        except Exception as error:  # noqa: BLE001 - handed to the parent, which decides
            answer = (False, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _die_with_parent() -> None:
    """A child that hangs in native code would outlive a parent that was killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
