"""A child that crashes, hangs, spins or raises costs one answer, and the next call is served."""

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from data_prep.video.child_process import Child, ChildDiedError, ChildRaisedError, ChildTimeoutError
from tests.data_prep.video.child_functions import answer, refuse_to_start, start_slowly

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


@pytest.mark.parametrize(("request_", "seconds"), [("hang", 0.1), ("spin", 0.3)])
def test_a_child_that_waits_or_spins_for_ever_is_ended(child: Child[str, str], request_: str, seconds: float):
    _, pid = ask(child, "a")
    with pytest.raises(ChildTimeoutError, match="by the clock"):
        ask(child, request_, seconds=seconds)
    assert not psutil.pid_exists(pid)
    assert ask(child, "a")[0] == "a"


def test_waiting_is_no_work(child: Child[str, str]):
    """Nap of a second with a limit of half: what counts is what the child does, not what the machine leaves it."""
    assert ask(child, "nap", seconds=0.5)[0] == "nap"


def test_the_start_is_no_part_of_a_call():
    slow: Child[str, str] = Child(answer, start_slowly)
    assert ask(slow, "a", seconds=0.1)[0] == "a"
    slow.close()
    with pytest.raises(RuntimeError, match="no such library"):
        Child(answer, refuse_to_start).start("a")


def test_an_unforeseen_error_keeps_its_text_and_the_process(child: Child[str, str]):
    _, pid = ask(child, "a")
    with pytest.raises(ChildRaisedError, match="KeyError: 'a surprise'"):
        ask(child, "raise")
    assert ask(child, "a")[1] == pid


def test_a_death_between_two_calls_goes_unnoticed(child: Child[str, str]):
    _, pid = ask(child, "a")
    os.kill(pid, signal.SIGKILL)
    while child._process.is_alive():
        time.sleep(0.05)
    assert ask(child, "b")[0] == "b"
