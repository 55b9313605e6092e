"""A child that crashes, hangs or raises costs one answer, and the next call is served."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from data_prep.child import Child, ChildDiedError, ChildLateError, ChildRaisedError
from tests.data_prep.child_functions import answer

SECONDS = 60.0  # a busy machine starts a process slowly


@pytest.fixture
def child() -> Iterator[Child[str, str]]:
    made: Child[str, str] = Child(answer)
    yield made
    made.close()


def ask(child: Child[str, str], request: str, seconds: float = SECONDS) -> tuple[str, int]:
    child.start(request)
    text, pid = child.finish(seconds).split(", ")
    return text, int(pid)


def test_one_process_answers_call_after_call(child: Child[str, str]):
    first, second = ask(child, "a"), ask(child, "b")
    assert (first[0], second[0]) == ("a", "b")
    assert first[1] == second[1] != os.getpid()


def test_a_crash_is_told_apart_and_the_next_call_is_served(child: Child[str, str]):
    with pytest.raises(ChildDiedError) as error:
        ask(child, "crash")
    assert error.value.exit_code == -signal.SIGSEGV
    assert ask(child, "a")[0] == "a"


def test_a_hang_is_ended_in_time(child: Child[str, str]):
    _, pid = ask(child, "a")
    started = time.monotonic()
    with pytest.raises(ChildLateError):
        ask(child, "hang", seconds=0.5)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # it is gone
    assert ask(child, "a")[0] == "a"


def test_an_unforeseen_error_keeps_its_text_and_the_process(child: Child[str, str]):
    _, pid = ask(child, "a")
    with pytest.raises(ChildRaisedError, match="KeyError: 'a surprise'"):
        ask(child, "raise")
    assert ask(child, "a")[1] == pid


def test_a_death_between_two_calls_goes_unnoticed(child: Child[str, str]):
    _, pid = ask(child, "a")
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    try:
        assert ask(child, "b")[0] == "b"
    except ChildDiedError:  # the request went into the pipe before the death was known
        assert ask(child, "b")[0] == "b"
