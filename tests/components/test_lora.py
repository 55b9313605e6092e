from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from components import lora
from components.domain_adapter import load_domain_adapter
from components.lora_stack import LoraStack
from components.motion_lora import load_motion_lora
from components.motion_module import MotionModuleConfig, fresh_motion_adapter, insert
from infra.errors import UserError

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def trained_adapter(unet: Any, path: Path) -> None:
    """Random numbers in place of a training."""
    parameters = lora.add_trainable(unet, "domain-adapter", 4, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    lora.save(path, "domain-adapter", parameters, {"beta_schedule": "linear"})


def test_the_effect_is_w_plus_scale_up_down(pipeline: Any, tmp_path: Path) -> None:
    before = pipeline.unet.get_submodule(LAYER).weight.clone()
    learnt = copy.deepcopy(pipeline.unet)
    trained_adapter(learnt, tmp_path / "a.safetensors")
    from safetensors.torch import load_file

    file = load_file(tmp_path / "a.safetensors")
    down, up = file[f"unet.{LAYER}.lora_A.weight"], file[f"unet.{LAYER}.lora_B.weight"]
    LoraStack(pipeline.unet).add("a", load_domain_adapter(tmp_path / "a.safetensors"), 0.7)
    assert torch.allclose(pipeline.unet.get_submodule(LAYER).weight, before + 0.7 * (up @ down), atol=1e-6)


def test_what_is_trained_is_what_is_loaded(pipeline: Any, tmp_path: Path) -> None:
    learnt = copy.deepcopy(pipeline.unet)
    trained_adapter(learnt, tmp_path / "a.safetensors")
    z, t, text = torch.randn(2, 4, 8, 8), torch.tensor([400]), torch.randn(2, 32, 128)
    with torch.no_grad():
        plain = pipeline.unet(z, t, text).sample
        LoraStack(pipeline.unet).add("a", load_domain_adapter(tmp_path / "a.safetensors"))
        expected, found = learnt(z, t, text).sample, pipeline.unet(z, t, text).sample
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_stock_diffusers_loads_every_layer_at_full_strength(pipeline: Any, tmp_path: Path) -> None:
    learnt = copy.deepcopy(pipeline.unet)
    trained_adapter(learnt, tmp_path / "a.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 32, 128)
    with torch.no_grad():
        assert torch.allclose(pipeline.unet(z, t, text).sample, learnt(z, t, text).sample, atol=1e-5)


def test_only_the_kind_s_layers_are_trainable(pipeline: Any) -> None:
    adapter = fresh_motion_adapter(MotionModuleConfig(preset="from-base"), pipeline.unet)
    video = insert(pipeline.unet, adapter)
    parameters = lora.add_trainable(video, "motion-lora", 4, 0)
    learning = {name for name, parameter in video.named_parameters() if parameter.requires_grad}
    assert len(learning) == len(parameters)
    assert all("motion_modules" in name and ".lora_" in name for name in learning)


def test_the_wrong_kind_is_named(trained: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"is a domain adapter, not a MotionLoRA.*Pass it as --domain-adapter") as one:
        load_motion_lora(trained["domain-adapter"] / "domain_adapter.safetensors")
    with pytest.raises(UserError, match=r"is a MotionLoRA, not a domain adapter.*Pass it as --motion-lora") as other:
        load_domain_adapter(trained["motion-lora"] / "original" / "motion_lora.safetensors")
    assert (one.value.exit_code, other.value.exit_code) == (2, 2)


def test_wrong_sizes_are_listed(trained: dict[str, Path], pipeline: Any) -> None:
    from diffusers import UNet2DConditionModel

    from tests.components.conftest import pocket_unet_config

    wider = UNet2DConditionModel(**{**pocket_unet_config(), "block_out_channels": (48, 64, 96)})
    with pytest.raises(UserError, match=r"attn1\.to_\w+(\.0)? is \(32, 32\) in the file and \(48, 48\) in the model"):
        LoraStack(wider).add("a", load_domain_adapter(trained["domain-adapter"]))


def test_half_a_pair_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(trained["motion-lora"] / "motion_lora.safetensors")
    state.pop(next(name for name in state if name.endswith("lora_B.weight")))
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match="missing or unknown tensors"):
        load_motion_lora(tmp_path / "half.safetensors")


def test_another_preset_warns(trained: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    load_motion_lora(trained["motion-lora"], {"preset": "v2"})
    assert "was trained on a from-base motion module and is used with a v2 one" in caplog.text
