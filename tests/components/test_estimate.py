from __future__ import annotations

from typing import Any

import pytest
import torch

from components import lora
from components.estimate import GIB, Shape, memory, saved_activation_bytes, step_flops
from components.motion_module import MotionModuleConfig, fresh_motion_adapter, insert
from components.presets import BASES
from tests.components.test_motion_module import sd_unet

SD15 = BASES["sd15"].widths
CLIP_256 = Shape(clips=1, frames=16, height=32, width=32)


def motion_v3(trains: str = "motion-module") -> Any:
    """SD 1.5 and the v3 module without memory."""
    with torch.device("meta"):
        unet = sd_unet(SD15)
        video = insert(unet, fresh_motion_adapter(MotionModuleConfig(preset="v3"), BASES["sd15"]))
        if trains == "motion-lora":
            lora.add_trainable(video, "motion-lora", 64, 0)
            return video
    video.requires_grad_(False)
    for name, parameter in video.named_parameters():
        parameter.requires_grad_(".motion_modules." in name)
    return video


def test_recomputing_all_layers_keeps_a_tenth_of_the_activations() -> None:
    """256 px, 16 frames, one clip; 7.16 GiB by an independent count."""
    kept = {mode: saved_activation_bytes(motion_v3(), CLIP_256, mode) / GIB for mode in ("none", "resnets", "full")}  # type: ignore[arg-type]
    print(kept)
    assert kept["none"] == pytest.approx(7.16, rel=0.03)
    assert kept["full"] <= 0.7
    assert kept["full"] < kept["resnets"] < kept["none"]


def test_flops_are_those_counted_by_others() -> None:
    """GFLOP a sample at 256 px: 9,355 for the motion module, 8,432 for a MotionLoRA of rank 64."""
    assert step_flops(motion_v3(), CLIP_256) / 1e9 == pytest.approx(9354.7, rel=0.02)
    assert step_flops(motion_v3("motion-lora"), CLIP_256) / 1e9 == pytest.approx(8431.6, rel=0.02)
    assert step_flops(motion_v3(), CLIP_256, "full") / 1e9 == pytest.approx(12_700, rel=0.03)


def test_memory_by_part_is_arithmetic() -> None:
    found = memory(motion_v3(), CLIP_256, "full", ema=True)
    assert found.parts["trained weights, fp32"] == 4 * 417_137_600
    assert found.parts["AdamW's moments"] == 8 * 417_137_600
    assert found.parts["frozen weights, bf16"] == 2 * 859_520_964
    assert found.total == sum(found.parts.values())
