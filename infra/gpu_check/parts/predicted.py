"""What `--plan` and the memory estimate say beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from components.base.model import HUB_REFERENCE
from components.bench.models import ADAPTER_RANK, SIZES, stage_of
from components.motion.module import MotionModuleConfig
from components.stages.plan import SHARES, plan
from components.train.config import TrainConfig
from components.train.estimate import GIB
from infra.gpu_check.context import Context
from infra.gpu_check.parts.training import case_of, named
from infra.gpu_check.rows import Row
from infra.pocket.build import WEIGHTS


def memory(context: Context) -> Iterator[Row]:
    """Of every training that was measured: its peak of what was predicted for it."""
    for row in context.rows:
        if "predicted_gib" not in row.details or not isinstance(row.value, float):
            continue
        predicted, what = row.details["predicted_gib"], row.what.removesuffix(": peak memory")
        note = f"{row.value:.2f} of {predicted:.2f} GiB"
        yield Row(f"{what}: memory, measured of predicted", row.value / predicted, note=note)


def seconds(context: Context, stage: str, clips: int) -> Iterator[Row]:
    """Of a step and of the plan's memory, by the plan of this stage."""
    case, sizes = case_of(context, stage, clips), context.sizes
    full = sizes.model in ADAPTER_RANK
    base = Path(HUB_REFERENCE) if full else WEIGHTS / "base"
    side = sizes.size // 8
    train = TrainConfig(steps=1, batch_size=clips, frames=case.frames)
    module = MotionModuleConfig(preset=SIZES[sizes.model].preset)
    made = plan(stage_of(case, train), base, (side, side), _gpu(context.device), module)
    usual, fast = (3600 * made.hours(share) for share in SHARES[1:])
    rate = context.value(f"{named(case)}: ours")
    said = f"{usual:.3g} s a step at {SHARES[1]:.0%} of {made.gpu.tflops:g} TFLOP/s, {fast:.3g} at {SHARES[2]:.0%}"
    if rate is None:
        yield Row(f"{named(case)}: the plan's seconds a step", usual, "s", note=said)
    else:
        measured = f"measured {clips / rate:.3g}, predicted {said}"
        yield Row(f"{named(case)}: seconds a step, measured of planned", clips / rate / usual, note=measured)
    peak = context.value(f"{named(case)}: peak memory")
    if peak is not None:
        total = made.memory.total / GIB
        yield Row(f"{named(case)}: memory, measured of planned", peak / total, note=f"{peak:.2f} of {total:.2f} GiB")


def _gpu(device: torch.device) -> str:
    """The plan's name of this card."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return "h200" if "H200" in name else "h100"
