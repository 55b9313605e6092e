"""How fast a training steps: ours, the bare UNet, the official step, and ours without a trick."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from components.bench import variants
from components.bench.models import Case, task_for
from components.train.activation_checkpointing import Checkpointing
from infra.gpu_check.context import Context
from infra.gpu_check.parts.basics import free
from infra.gpu_check.rows import Row

RATE, SHARE, AGAINST_OFFICIAL = 30.0, 0.38, 2.5
"""Samples a second of the motion module at 256 px and 16 frames; that of the matmul rate; ours against the official
step."""
CARD_GIB = 80.0


def ours(
    context: Context, stage: str, clips: int, checkpointing: Checkpointing = "none", compile: bool = False,
    target: bool = False,
) -> Iterator[Row]:  # fmt: skip
    """The trainer's loop, and then the bare UNet as the trainer has left it."""
    case = case_of(context, stage, clips, checkpointing, compile)
    name, device = named(case), context.device
    built = task_for(case, device)
    found = variants.ours(case, device, context.sizes.timing_seconds, built)
    judged = target or compile
    yield _against(context, judged, RATE, f"{name}: ours", found["rate"], "samples/s")
    if found["mfu"] is not None:
        yield _against(context, judged, SHARE, f"{name}: share of the matmul rate", found["mfu"])
    predicted = f"{found['predicted_gib']:.2f} GiB predicted"
    row = context.at_most(CARD_GIB, f"{name}: peak memory", found["peak_gib"], "GiB", predicted)
    row.details = {"predicted_gib": found["predicted_gib"], "allocated_gib": allocated_gib(device)}
    yield row
    if checkpointing != "none":
        return
    _, task, source = built
    free()  # of what the trainer had beside the model
    autocast = device.type == "cuda"
    bare = variants.limit_of(case, device, context.sizes.timing_seconds, task, source, autocast)
    note = f"peak {bare['peak_gib']:.2f} GiB"
    yield Row(f"{name}: the bare UNet", bare["rate"], "samples/s", note=note)
    yield Row(f"{name}: ours of the bare UNet", found["rate"] / bare["rate"])
    if compile:
        torch._dynamo.reset()


def official(context: Context, stage: str, clips: int) -> Iterator[Row]:
    """The official step restated."""
    case = case_of(context, stage, clips)
    found = variants.plain(case, context.device, context.sizes.timing_seconds)
    note = f"peak {found['peak_gib']:.2f} GiB"
    yield Row(f"{named(case)}: the official step", found["rate"], "samples/s", note=note)
    own = context.value(f"{named(case)}: ours")
    if own is not None:
        what = f"{named(case)}: ours against the official step"
        yield _against(context, stage == "motion-module", AGAINST_OFFICIAL, what, own / found["rate"])


def without(context: Context, trick: str) -> Iterator[Row]:
    """Ours with one trick undone."""
    case = case_of(context, "motion-module", context.sizes.clips[1], undo=trick)
    found = variants.ours(case, context.device, context.sizes.timing_seconds)
    note = f"peak {found['peak_gib']:.2f} GiB"
    yield Row(f"without {trick}", found["rate"], "samples/s", note=note)
    whole = context.value(f"{named(case)}: ours")
    if whole is not None:
        yield Row(f"{trick} gives", whole / found["rate"], "times")


def case_of(
    context: Context, stage: str, clips: int, checkpointing: Checkpointing = "none", compile: bool = False,
    undo: str = "",
) -> Case:  # fmt: skip
    sizes = context.sizes
    frames = 1 if stage == "domain-adapter" else sizes.frames
    return Case(sizes.model, stage, clips, frames, sizes.size, checkpointing, compile, undo)


def named(case: Case) -> str:
    """As in every row of it."""
    said = "" if case.checkpointing == "none" else f", {case.checkpointing} recomputed"
    return f"{case.stage} B={case.clips}{said}{', compiled' if case.compile else ''}"


def allocated_gib(device: torch.device) -> float | None:
    """The most that tensors held since the peak was forgotten; what they took of the device is more."""
    return torch.cuda.max_memory_allocated(device) / (1 << 30) if device.type == "cuda" else None


def _against(context: Context, judged: bool, least: float, what: str, value: float, unit: str = "") -> Row:
    return context.at_least(least, what, value, unit) if judged else Row(what, value, unit)
