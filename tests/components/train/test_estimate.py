from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from components.diffusion.objective import video_predictor
from components.lora import lora
from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module
from components.motion.presets import BASE_SHAPES
from components.train import estimate
from components.train.activation_checkpointing import Checkpointing, checkpoint_activations
from components.train.estimate import GIB, Shape, activations, memory, step_flops
from tests.components.motion.test_module import sd_unet

SD15 = BASE_SHAPES["sd15"].widths
CLIP_256 = Shape(clips=1, frames=16, height=32, width=32)


def motion_v3(trains: str = "motion-module") -> Any:
    """SD 1.5 and the v3 module without memory."""
    with torch.device("meta"):
        unet = sd_unet(SD15)
        video = insert_motion_module(unet, fresh_motion_adapter(MotionModuleConfig(preset="v3"), BASE_SHAPES["sd15"]))
        if trains == "motion-lora":
            lora.add_trainable_lora(video, "motion-lora", 64, 0)
            return video
    video.requires_grad_(False)
    for name, parameter in video.named_parameters():
        parameter.requires_grad_(".motion_modules." in name)
    return video


class Alive(TorchDispatchMode):
    """The bytes of all storages, a model's own apart, that were made under it and are still there."""

    def __init__(self, but: nn.Module) -> None:
        super().__init__()
        self.weights = {each.untyped_storage()._cdata for each in (*but.parameters(), *but.buffers())}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(out):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self.weights:
                    self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self) -> int:
        return sum(size for storage, size in self.made.values() if not storage.expired())


def alive_after_forward(mode: Checkpointing) -> int:
    """Bytes that a forward pass leaves behind for the backward one, under CUDA's autocast rules."""
    unet = motion_v3()
    with FakeTensorMode(allow_non_fake_inputs=True):
        estimate._to_fake(unet, torch.bfloat16)
        checkpoint_activations(unet, mode)
        unet.train()
        inputs = estimate._inputs(CLIP_256, "cuda")
        with estimate._as_on_cuda(True), Alive(unet) as alive:
            answer = video_predictor(unet)(*inputs)
        gc.collect()
        assert answer.requires_grad
        return alive.bytes()


def test_recomputing_all_layers_keeps_a_tenth_of_the_activations() -> None:
    """256 px, 16 frames, one clip; 7.16 GiB without recomputing, by an independent count. What our count of one plain
    pass says of recomputing is what passes that do recompute leave behind."""
    found = activations(motion_v3(), CLIP_256)
    kept = {mode: each.kept / GIB for mode, each in found.items()}
    print(found)
    assert kept["none"] == pytest.approx(7.16, rel=0.03)
    assert kept["full"] <= 0.7
    assert kept["full"] < kept["resnets"] < kept["none"]
    for mode in ("none", "resnets", "full"):
        alive = alive_after_forward(mode) / GIB
        print(mode, alive)
        assert alive == pytest.approx(kept[mode], rel=0.05)
    assert found["full"].recomputed / GIB == pytest.approx(411 / 1024, rel=0.03)  # the same count's largest layer
    assert found["none"].recomputed == 0


def test_flops_are_those_counted_by_others() -> None:
    """GFLOP a sample at 256 px: 9,355 for the motion module, 8,432 for a MotionLoRA of rank 64."""
    assert step_flops(motion_v3(), CLIP_256) / 1e9 == pytest.approx(9354.7, rel=0.02)
    assert step_flops(motion_v3("motion-lora"), CLIP_256) / 1e9 == pytest.approx(8431.6, rel=0.02)
    assert step_flops(motion_v3(), CLIP_256, "full") / 1e9 == pytest.approx(12_700, rel=0.03)


def test_memory_by_part_is_arithmetic() -> None:
    found = memory(motion_v3(), CLIP_256, ema=True)["full"]
    assert found.parts["trained weights, fp32"] == 4 * 417_137_600
    assert found.parts["AdamW's moments"] == 8 * 417_137_600
    assert found.parts["frozen weights, bf16"] == 2 * 859_520_964
    assert found.total == sum(found.parts.values())
