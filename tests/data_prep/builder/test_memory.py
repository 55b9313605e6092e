"""Ten times the clips, the same peak memory: of the driver, and of the actors with their decoding children."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from data_prep.cache.cache import LatentCache
from data_prep.config import CacheConfig
from infra.pocket.build import WEIGHTS
from infra.pocket.clips import write_clips
from tests.data_prep.builder.building import start_build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
CONFIG = CacheConfig(size=64, frames_max=20, shard_videos=32, workers=2)
MIB = 1 << 20


def footage(folder: Path, drawn: list[Path], count: int) -> Path:
    """`count` videos: the drawn ones under as many names as it takes."""
    folder.mkdir()
    for place in range(count):
        os.link(drawn[place % len(drawn)], folder / f"{place:06d}.mp4")
    return folder


def peaks(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Peak memory that is each process's own (USS, bytes), summed over the processes of a kind."""
    most = {"driver": 0, "workers": 0}
    leader = psutil.Process(process.pid)
    while process.poll() is None:
        sums = {"driver": 0, "workers": 0}
        for one in [leader, *leader.children(recursive=True)]:
            try:
                line = " ".join(one.cmdline())
                kind = "driver" if one.pid == leader.pid else "workers" if "ray::" in line or "spawn" in line else None
                if kind is not None:
                    sums[kind] += one.memory_full_info().uss
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        most = {kind: max(most[kind], sums[kind]) for kind in most}
        time.sleep(0.2)
    return most


def test_ten_times_the_clips_same_memory(tmp_path: Path):
    drawn = sorted(write_clips(tmp_path / "drawn", 50, seed=9, size=64).parent.rglob("*.mp4"))
    found = {}
    for count in (200, 2000):
        videos = footage(tmp_path / f"videos-{count}", drawn, count)
        out = tmp_path / f"cache-{count}"
        process = start_build(
            CONFIG.model_dump(mode="json"), videos, WEIGHTS / "base", out, log := tmp_path / f"{count}.log"
        )
        found[count] = peaks(process)
        assert process.returncode == 0, log.read_text()
        assert len(LatentCache(out)) == count
    for kind in ("driver", "workers"):
        few, many = found[200][kind] / MIB, found[2000][kind] / MIB
        print(f"\npeak of {kind}: {few:.0f} MiB at 200 clips, {many:.0f} MiB at 2,000")
        assert many < 1.1 * few + 32
