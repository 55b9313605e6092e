"""The machine: telemetry off, device, seeds, and one Ray per process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Every dependency that reports home, switched off; Ray must not repackage the working folder under `uv run`.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",  # 15 by default: beside any other job a build starves
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "TOKENIZERS_PARALLELISM": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "animateflow",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def quiet_environment() -> None:
    """Sets `QUIET` where the user has not; call it before the first heavy import."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Has glibc keep what this process frees for its next allocation; nothing where the C library is another.

    By default each tensor past 128 KiB to 32 MiB is a mapping of its own: page faults took a third of a VAE's time on
    a CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)


def pick_device(device: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@contextmanager
def ray_session(address: str | None = None, cpus: int | None = None, log_to_driver: bool = True) -> Iterator[None]:
    """Ray for the length of the block: the running one, the cluster at `address`, or a fresh local one.

    A local one is stopped at the end; one that was there before is left running.
    """
    quiet_environment()
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address=address,
        num_cpus=None if address else cpus,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=log_to_driver,
    )
    try:
        yield
    finally:
        ray.shutdown()
