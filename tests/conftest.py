"""For all tests: nothing reports home, the libraries are as quiet as in a run, and there is one Ray.

`make test` shares the files between two processes; see `SharedByFile`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from infra.runtime import quiet_environment

quiet_environment()
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: two processes of two threads each wait for each other on two cores.
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
# What takes minutes comes first, so that no process is left alone with it at the end.
LONG = (
    "tests/flows/serving/test_up.py",
    "tests/components/stages/test_kills.py",
    "tests/components/train/",
    "tests/infra/gpu_check/",
)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray; `infra.runtime.ray_session` uses the running one."""
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    if started:
        ray.shutdown()


@cache
def needs_ray(file: str) -> bool:
    return "ray_local" in (ROOT / file).read_text(encoding="utf-8")


def file_of(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests: those with Ray, then what is long, then the rest."""
    if not hasattr(config, "workerinput"):
        return

    def place(item: pytest.Item) -> int:
        file = file_of(item.nodeid)
        if needs_ray(file):
            return -1
        return next((place for place, name in enumerate(LONG) if file.startswith(name)), len(LONG))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class SharedByFile(LoadScopeScheduling):
        """A file's tests run in one process, and all that need Ray in the same one: they share a cluster."""

        def _split_scope(self, nodeid: str) -> str:
            file = file_of(nodeid)
            return "ray" if needs_ray(file) else file

    config.option.loadscopereorder = False
    return SharedByFile(config, log)
