"""Hashes, video files, logs and the quiet environment."""

import io
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from infra import hashing, runtime, video
from infra.errors import UserError, WorkError
from infra.logs import get_logger, setup_logging


def test_a_folder_hash_sees_names_and_bytes_and_no_hidden_files(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("1")
    first = hashing.sha256_folder(tmp_path)
    (tmp_path / ".hidden").write_text("2")
    assert hashing.sha256_folder(tmp_path) == first
    (tmp_path / "a" / "x.txt").rename(tmp_path / "a" / "y.txt")
    renamed = hashing.sha256_folder(tmp_path)
    (tmp_path / "a" / "y.txt").write_text("3")
    assert len({first, renamed, hashing.sha256_folder(tmp_path)}) == 3


def test_a_json_hash_does_not_depend_on_key_order():
    assert hashing.sha256_json({"a": 1, "b": [2]}) == hashing.sha256_json({"b": [2], "a": 1})


def test_an_mp4_reads_back_close_to_what_was_written_and_equal_frames_give_equal_bytes(tmp_path: Path):
    x = np.linspace(0, 255, 64, dtype=np.uint8)
    frames = np.stack([np.broadcast_to(np.roll(x, 2 * i)[None, :, None], (48, 64, 3)) for i in range(8)])
    video.write_mp4(tmp_path / "a.mp4", frames, 8)
    video.write_mp4(tmp_path / "b.mp4", frames, 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    back = video.read_mp4(tmp_path / "a.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(float) - frames).mean() < 6


def test_logs_go_to_stderr_above_the_bars(capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger("animateflow")
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    try:
        setup_logging()
        get_logger("test").info("said once")
        setup_logging()
        get_logger("test").debug("not said")
    finally:
        root.handlers = handlers
        root.setLevel(level)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("said once") == 1
    assert "not said" not in captured.err


def test_telemetry_is_off_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch):
    for name in runtime.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "mine")
    runtime.quiet_environment()
    assert os.environ["DO_NOT_TRACK"] == "mine"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_errors_survive_a_process_boundary():
    for kind in (UserError, WorkError):
        error = kind("found", "meaning", "next")
        copy = pickle.load(io.BytesIO(pickle.dumps(error)))
        assert type(copy) is kind
        assert str(copy) == "found meaning next"
        assert copy.exit_code == error.exit_code


ALLOCATE = """
import resource
import sys

import os
import numpy as np

from infra.runtime import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()


def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


page_faults()
print(page_faults())
"""


def test_freed_memory_is_kept():
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", ALLOCATE, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("as it comes") > 1000
    assert faults("keep") < 100


def test_workers_of_ray_are_as_nice_as_this_process(ray_local: None):
    import ray

    @ray.remote
    def niceness() -> int:
        return os.nice(0)

    assert ray.get(niceness.remote()) == os.nice(0)


def test_a_file_is_hashed_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    old = path.stat().st_mtime_ns - 10 * hashing.RECENT_NS
    os.utime(path, ns=(old, old))
    read, digest = [], hashing._digest
    monkeypatch.setattr(hashing, "_digest", lambda path, start: (read.append(path), digest(path, start))[1])
    first = hashing.sha256_path(path)
    assert hashing.sha256_path(path) == first
    assert len(read) == 1
    path.write_bytes(b"two")  # of the same size, and just now
    assert hashing.sha256_path(path) != first
    assert hashing.sha256_path(path) != first
    assert len(read) == 3, "what has just been changed may change again within one tick of the clock"
