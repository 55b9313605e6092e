"""The lock of an artifact's folder: one holder at a time, nothing left behind, and words where there are no locks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.artifacts.sealing import locked
from infra.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PROCESSES, TURNS = 4, 60


def take_turns(folder: Path, turns: int) -> None:
    """Holds the lock so many times. What another holder leaves inside shows that two held it at once."""
    inside = folder.with_name("inside")
    held = 0
    while held < turns:
        try:
            with locked(folder):
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                inside.unlink()
                held += 1
        except UserError:
            continue


def test_two_processes_never_hold_the_lock_at_once(tmp_path: Path):
    command = [sys.executable, "-m", __name__, str(tmp_path / "motion"), str(TURNS)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert errors == [""] * PROCESSES
    assert [process.returncode for process in running] == [0] * PROCESSES
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_in_words(tmp_path: Path, monkeypatch, code: int):
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="has no file locks") as caught, locked(tmp_path / "motion"):
        pass
    assert caught.value.next_step.startswith("Name an --out on a local disk")


def test_the_lock_is_free_again_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "motion"):
        _ = 1 / 0
    with locked(tmp_path / "motion"), pytest.raises(UserError, match="Another run"), locked(tmp_path / "motion"):
        pass
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    take_turns(Path(sys.argv[1]), int(sys.argv[2]))
