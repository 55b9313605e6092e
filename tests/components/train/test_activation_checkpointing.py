from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from components.motion.module import fresh_motion_adapter, insert_motion_module, temporal_modules
from components.train.activation_checkpointing import checkpoint_activations
from tests.components.motion.test_module import FROM_BASE, image_unet, randomised


@pytest.mark.parametrize("mode", ["resnets", "full"])
def test_recomputed_activations_give_the_same_gradients(mode: Any) -> None:
    unet = image_unet()
    plain = insert_motion_module(unet, randomised(fresh_motion_adapter(FROM_BASE, unet)))
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving, mode)
    z, text, t = torch.randn(1, 4, 3, 8, 8), torch.randn(3, 32, 128), torch.tensor([500])

    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        model.train()
        model(z, t, text).sample.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients(plain), gradients(saving)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)


def test_every_temporal_transformer_is_recomputed() -> None:
    """Forward runs once more in the backward pass, in the mid block too; diffusers' own switch leaves most out."""
    unet = image_unet()
    adapter = fresh_motion_adapter(FROM_BASE, unet)
    from diffusers import MotionAdapter

    with_mid = MotionAdapter.from_config({**adapter.config, "use_motion_mid_block": True})
    video = insert_motion_module(unet, with_mid)
    checkpoint_activations(video, "full")
    runs: dict[str, int] = {}
    for name, module in temporal_modules(video).items():
        module.proj_in.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    video.train()
    video(torch.randn(1, 4, 3, 8, 8), torch.tensor([500]), torch.randn(3, 32, 128)).sample.mean().backward()
    assert runs == dict.fromkeys(temporal_modules(video), 2)
    assert "mid_block.motion_modules.0" in runs
