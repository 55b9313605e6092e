from __future__ import annotations

from pathlib import Path

import pytest

from components.base.model import HUB_REFERENCE
from components.motion.module import MotionModuleConfig
from components.stages.plan import GPUS, plan
from components.train.config import TrainConfig
from infra.errors import UserError

SD15 = Path(HUB_REFERENCE)


def test_a_plan_counts_what_learns_and_picks_the_least_recomputation_that_fits() -> None:
    """SD 1.5 and v3 at 256 px, from the config alone; 9.35 TFLOP a clip, and 12.7 with everything recomputed."""
    module, train = MotionModuleConfig(preset="v3"), TrainConfig(steps=1000, batch_size=4)
    large, small = (plan("motion-module", train, SD15, (32, 32), gpu, module) for gpu in ("h100", "rtx-3090"))
    assert (large.trained, large.frozen) == (417_137_600, 859_520_964)
    assert large.flops / 1e12 == pytest.approx(4 * 9.355, rel=0.02)
    assert (large.mode, small.mode) == ("none", "full")
    assert small.flops_run / small.flops == pytest.approx(1.36, rel=0.03)
    assert large.hours(0.5) == pytest.approx(large.flops * 1000 / (0.5 * GPUS["h100"].tflops * 1e12) / 3600)
    assert small.memory.total < GPUS["rtx-3090"].memory_gib * 2**30
    assert "full recomputed" in "\n".join(small.lines())


def test_what_does_not_fit_is_said(base_folder: Path) -> None:
    train = TrainConfig(steps=10, batch_size=512)
    found = plan("motion-module", train, SD15, (64, 64), "l4", MotionModuleConfig(preset="v3"))
    assert found.mode is None
    assert "DOES NOT FIT" in "\n".join(found.lines())
    own = plan("domain-adapter", TrainConfig(), base_folder, (16, 16), "l4", rank=4)
    assert own.trained == 28_672
    with pytest.raises(UserError, match="no figure for the GPU 'abacus'"):
        plan("motion-module", train, SD15, (32, 32), "abacus")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        plan("motion-module", train, Path("nowhere"), (32, 32), "l4")
