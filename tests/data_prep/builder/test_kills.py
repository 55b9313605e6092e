"""SIGKILL of the driver, of a worker, of a node: the finished cache has the rows of an uninterrupted one, bit for bit.

A few kills run always; `pytest -m slow tests/data_prep/test_kills.py` does 27 at random moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_prep.builder.build import build_latent_cache
from data_prep.cache.shards import shard_paths
from data_prep.cache.verify import verify
from data_prep.config import CacheConfig
from infra.errors import WorkError
from infra.pocket.build import WEIGHTS
from infra.pocket.clips import write_clips
from tests.data_prep.builder.building import rows_of, start_build

CONFIG = CacheConfig(size=64, frames_max=20, shard_videos=4, workers=2)
CLIPS = 96
RUNS_MAX = 6


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 drawn clips, two of which cannot be decoded."""
    folder = write_clips(tmp_path_factory.mktemp("footage"), CLIPS, seed=11, size=64).parent / "videos"
    videos = sorted(folder.rglob("*.mp4"))
    for place in (3, 40):
        videos[place].write_bytes(videos[place].read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def uninterrupted(ray_local: None, footage: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    made = build_latent_cache(CONFIG, footage, None, WEIGHTS / "base", tmp_path_factory.mktemp("whole") / "cache")
    assert made.counts["clips"] == CLIPS - 2
    return rows_of(made.folder)


def compare(out: Path, uninterrupted: list[dict[str, Any]]) -> None:
    """Row for row the same, and nothing lies about."""
    rows = rows_of(out)
    assert len({row["clip_id"] for row in rows}) == len(rows) == len(uninterrupted)
    assert rows == uninterrupted
    assert verify(out).ok
    assert not list(out.parent.glob(".cache*")), sorted(out.parent.glob(".cache*"))


def run_until_done(out: Path, footage: Path, kill: Callable[[subprocess.Popen[bytes]], bool]) -> int:
    """Builds again and again, `kill` having its way with each run but the last; returns how often it killed."""
    kills = 0
    log = out.parent / "build.log"
    for run in range(RUNS_MAX + 1):
        process = start_build(CONFIG.model_dump(mode="json"), footage, WEIGHTS / "base", out, log)
        try:
            if run < RUNS_MAX and kill(process):
                kills += 1
            code = process.wait(timeout=240)
        finally:
            with_group(process.pid, signal.SIGKILL)
        if code == 0:
            return kills
        assert code in (-signal.SIGKILL, 1), log.read_text()
    raise AssertionError(log.read_text())


def with_group(pid: int, what: signal.Signals) -> None:
    try:
        os.killpg(pid, what)
    except ProcessLookupError:
        return


def shards_there(out: Path) -> int:
    return len(shard_paths(out.with_name(f".{out.name}.partial"))) + len(shard_paths(out))


def driver_killer(out: Path, moment: random.Random, most: int) -> Callable[[subprocess.Popen[bytes]], bool]:
    """Kills the driver some moments after some shards are there, `most` times."""
    left = [most]

    def kill(process: subprocess.Popen[bytes]) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        wanted = shards_there(out) + moment.randrange(0, 12)
        while process.poll() is None and shards_there(out) < wanted:
            time.sleep(0.01)
        time.sleep(moment.random() * 0.3)
        if process.poll() is not None:
            return False
        process.kill()
        return True

    return kill


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The actors that encode, by what Ray names their processes."""
    return [child for child in process.children(recursive=True) if "ShardWorker" in " ".join(child.cmdline())]


def worker_killer(out: Path, moment: random.Random, most: int) -> Callable[[subprocess.Popen[bytes]], bool]:
    """Kills one worker in the middle of its work, `most` times; Ray makes another one."""
    left = [most]

    def kill(process: subprocess.Popen[bytes]) -> bool:
        if not left[0]:
            return False
        left[0] -= 1
        wanted = shards_there(out) + moment.randrange(1, 8)
        while process.poll() is None and shards_there(out) < wanted:
            time.sleep(0.01)
        time.sleep(moment.random() * 0.2)
        workers = workers_of(psutil.Process(process.pid)) if process.poll() is None else []
        for worker in workers[:1]:
            worker.kill()
        return bool(workers)

    return kill


def test_killed_worker_and_driver(footage: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path):
    out = tmp_path / "cache"
    moment = random.Random(1)
    worker, driver = worker_killer(out, moment, 1), driver_killer(out, moment, 1)
    killed = []

    def kill(process: subprocess.Popen[bytes]) -> bool:
        if not killed:
            killed.extend([worker(process), driver(process)])
        return False

    run_until_done(out, footage, kill)
    assert killed == [True, True]
    compare(out, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_killed_drivers_and_workers(footage: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path):
    kills = {"driver": 0, "worker": 0}
    for cache in range(4):
        moment = random.Random(cache)
        for kind, killer in (("driver", driver_killer), ("worker", worker_killer)):
            out = tmp_path / f"{kind}-{cache}" / "cache"
            out.parent.mkdir()
            kills[kind] += run_until_done(out, footage, killer(out, moment, 3 if kind == "driver" else 1))
            compare(out, uninterrupted)
    print(f"\nkills: {kills}")
    assert kills["driver"] >= 11
    assert kills["worker"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_killed_nodes(footage: Path, uninterrupted: list[dict[str, Any]], tmp_path: Path):
    """A node of two loses its raylet and all that runs on it; the build goes on with what is left, or is run again."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    kills, runs = 0, 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        for number in range(12):
            moment = random.Random(100 + number)
            node = cluster.add_node(num_cpus=2)
            cluster.wait_for_nodes()
            out = tmp_path / str(number) / "cache"
            out.parent.mkdir()
            killed = threading.Event()

            def kill(out: Path = out, node: Any = node, moment: random.Random = moment, done: Any = killed) -> None:
                wanted = moment.randrange(0, 14)
                while shards_there(out) < wanted:
                    time.sleep(0.01)
                time.sleep(moment.random() * 0.3)
                node.kill_raylet()
                done.set()

            killer = threading.Thread(target=kill)
            killer.start()
            for _ in range(RUNS_MAX):
                runs += 1
                try:
                    build_latent_cache(
                        CONFIG.replace(ray_address=cluster.address), footage, None, WEIGHTS / "base", out
                    )
                    break
                except WorkError:
                    continue
            killer.join(60)
            kills += killed.is_set()
            compare(out, uninterrupted)
            cluster.remove_node(node, allow_graceful=False)
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(f"\nnodes killed: {kills}, runs: {runs}")
    assert kills >= 11
