"""Where the time goes of what fell short: the kernels of one step by their share."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from components.bench.models import config_of, task_for
from components.train.step import Process, Stepper
from infra.gpu_check.context import Context
from infra.gpu_check.parts import animating
from infra.gpu_check.parts.basics import synchronize
from infra.gpu_check.parts.encoding import bare_loop, vae_of
from infra.gpu_check.parts.training import case_of
from infra.gpu_check.rows import Row

SHOWN, KEPT = 5, 25


def training(context: Context, clips: int) -> Iterator[Row]:
    case = case_of(context, "motion-module", clips)
    _, task, source = task_for(case, context.device)
    stepper = Stepper(config_of(case, context.device), task, Process(context.device))
    batches = source.batches(case.clips, task.frames, 0)
    yield from _profiled(context, f"step of {clips} clips", lambda: stepper.step(0, [next(batches)]))


def encoding(context: Context) -> Iterator[Row]:
    batch = min(64, context.sizes.vae_clips)
    yield from _profiled(context, "batch through the VAE", bare_loop(context, vae_of(context), batch).once)


def animating_step(context: Context) -> Iterator[Row]:
    with animating.animator(context) as made:
        config = animating.config_of(context).replace(steps=1)
        yield from _profiled(context, "animation of one step", lambda: made.frames(config))


def _profiled(context: Context, what: str, work: Callable[[], Any]) -> Iterator[Row]:
    """Seconds of it, how much of them the device is busy, and its kernels by share."""
    device = context.device
    for _ in range(3):
        work()
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    took = time.perf_counter() - began
    on_gpu = device.type == "cuda"
    watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=watched) as found:
        work()
        synchronize(device)
    times: Counter[str] = Counter()
    for event in found.key_averages():
        if on_gpu and event.device_type == DeviceType.CUDA:
            times[event.key] += event.self_device_time_total
        elif not on_gpu:
            times[event.key] += event.self_cpu_time_total
    total = sum(times.values()) or 1.0  # microseconds
    top = [(name, spent / total) for name, spent in times.most_common(KEPT)]
    details = {"kernels": [{"name": name, "share": share} for name, share in top]}
    yield Row(f"{what}", took, "s", details=details)
    yield Row(f"{what}: device busy", total / 1e6 / took)
    for name, share in top[:SHOWN]:
        yield Row(f"{what}: {name[:70]}", share)
