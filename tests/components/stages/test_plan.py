from __future__ import annotations

from pathlib import Path

import pytest

from components.base.model import HUB_REFERENCE
from components.motion.module import MotionModuleConfig
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.plan import GPUS, plan
from components.train.config import TrainConfig
from infra.errors import UserError

SD15 = Path(HUB_REFERENCE)


def test_a_plan_counts_what_learns_and_picks_the_least_recomputation_that_fits() -> None:
    """SD 1.5 and v3 at 256 px, from the config alone; 9.35 TFLOP a clip, and 12.7 with everything recomputed."""
    stage = MotionModuleTraining(preset="v3", train=TrainConfig(steps=1000, batch_size=4))
    large, small = (plan(stage, SD15, (32, 32), gpu) for gpu in ("h100", "rtx-3090"))
    assert (large.trained, large.frozen) == (417_137_600, 859_520_964)
    assert large.flops / 1e12 == pytest.approx(4 * 9.355, rel=0.02)
    assert (large.mode, small.mode) == ("none", "full")
    assert small.flops_run / small.flops == pytest.approx(1.36, rel=0.03)
    assert large.hours(0.5) == pytest.approx(large.flops * 1000 / (0.5 * GPUS["h100"].tflops * 1e12) / 3600)
    assert small.memory.total < GPUS["rtx-3090"].memory_gib * 2**30
    assert "full recomputed" in "\n".join(small.lines())


def test_what_does_not_fit_is_said(base_folder: Path) -> None:
    stage = MotionModuleTraining(preset="v3", train=TrainConfig(steps=10, batch_size=512))
    found = plan(stage, SD15, (32, 32), "l4")
    assert found.mode is None
    assert "DOES NOT FIT" in "\n".join(found.lines())
    own = plan(DomainAdapterTraining(rank=4), base_folder, (16, 16), "l4")
    assert own.trained == 28_672
    with pytest.raises(UserError, match="no figure for the GPU 'abacus'"):
        plan(stage, SD15, (32, 32), "abacus")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        plan(stage, Path("nowhere"), (32, 32), "l4")


def test_a_motion_lora_is_planned_on_the_motion_module_it_is_given() -> None:
    """For each of 20 modules (v2 has one more, 1280 wide), 8 projections of its width d hold 2 · 64 · d weights."""
    stage = MotionLoraTraining(rank=64)
    small, large = (plan(stage, SD15, (32, 32), "h100", MotionModuleConfig(preset=preset)) for preset in ("v3", "v2"))
    assert small.trained == 8 * 2 * 64 * (5 * 320 + 5 * 640 + 10 * 1280)
    assert large.trained == small.trained + 8 * 2 * 64 * 1280
    assert (small.frozen, large.frozen) == (859_520_964 + 417_137_600, 859_520_964 + 453_209_280)


def test_a_plan_says_what_checkpoints_take_on_disk() -> None:
    """Weights, two moments and the EMA in fp32; the newest two, the best, and one being written."""
    train = TrainConfig(steps=10, ema_decay=0.999)
    found = plan(MotionModuleTraining(preset="v3", train=train), SD15, (32, 32), "h100")
    assert found.checkpoint_bytes == 4 * 4 * 417_137_600
    line = next(line for line in found.lines() if line.startswith("checkpoints on disk"))
    assert "24.86 GiB at most while it runs: 4 of 6.22 GiB" in line
