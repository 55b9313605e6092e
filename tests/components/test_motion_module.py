from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from components import lora
from components.motion_files import load_motion_module, save_motion_module
from components.motion_module import (
    MotionModuleConfig,
    checkpoint_activations,
    fresh_motion_adapter,
    insert,
    motion_state,
    temporal_modules,
)
from components.names import lora_to_original, motion_to_original
from infra.errors import UserError

FROM_BASE = MotionModuleConfig(preset="from-base")


def image_unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    from tests.components.conftest import pocket_unet_config

    torch.manual_seed(1)
    return UNet2DConditionModel(**{**pocket_unet_config(), **changes})


def sd_unet(channels: tuple[int, ...]) -> Any:
    """Stable Diffusion 1.5's UNet (or its first three levels) without memory for its weights."""
    from diffusers import UNet2DConditionModel

    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=channels,
        cross_attention_dim=768,
        attention_head_dim=8,
        layers_per_block=2,
        down_block_types=["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
    )


def randomised(adapter: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("group_norm", ["per_frame", "pooled"])
def test_a_fresh_motion_module_leaves_every_frame_to_the_image_model(group_norm: Any) -> None:
    unet = image_unet()
    video = insert(unet, fresh_motion_adapter(FROM_BASE, unet), group_norm)
    generator = torch.Generator().manual_seed(2)
    z, text = torch.randn(2, 4, 5, 16, 16, generator=generator), torch.randn(2, 32, 128, generator=generator)
    t = torch.tensor([10, 900])
    with torch.no_grad():
        whole = video(z, t, text.repeat_interleave(5, 0)).sample
        for frame in range(5):
            alone = unet(z[:, :, frame], t, text).sample
            assert (whole[:, :, frame] - alone).abs().max() < 1e-5
    assert whole.std() > 0.01  # the models answer something


def test_a_trained_motion_module_mixes_frames() -> None:
    unet = image_unet()
    video = insert(unet, randomised(fresh_motion_adapter(FROM_BASE, unet)))
    z, text, t = torch.randn(1, 4, 4, 8, 8), torch.randn(4, 32, 128), torch.tensor([500])
    other = z.clone()
    other[:, :, 3] += 1
    with torch.no_grad():
        difference = video(z, t, text).sample - video(other, t, text).sample
    assert difference[:, :, 0].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("preset", "channels", "parameters", "modules", "keys", "positions"),
    [
        ("v1", (320, 640, 1280, 1280), 417_137_600, 20, 560, 24),
        ("v2", (320, 640, 1280, 1280), 453_209_280, 21, 588, 32),
        ("v3", (320, 640, 1280, 1280), 417_137_600, 20, 560, 32),
        ("sdxl-beta", (320, 640, 1280), 236_779_200, 15, 420, 32),
    ],
)
def test_presets_have_the_released_sizes(
    preset: Any, channels: tuple[int, ...], parameters: int, modules: int, keys: int, positions: int
) -> None:
    with torch.device("meta"):
        adapter = fresh_motion_adapter(MotionModuleConfig(preset=preset), sd_unet(channels))
    original = motion_to_original(adapter.state_dict())
    assert sum(parameter.numel() for parameter in adapter.parameters()) == parameters
    assert len(temporal_modules(adapter)) == modules
    assert len(original) == keys
    assert {tensor.shape[1] for name, tensor in original.items() if name.endswith("pos_encoder.pe")} == {positions}
    assert ("mid_block.motion_modules.0.temporal_transformer.norm.weight" in original) == (preset == "v2")


def test_loras_have_the_released_sizes() -> None:
    with torch.device("meta"):
        unet = sd_unet((320, 640, 1280, 1280))
        video = insert(unet, fresh_motion_adapter(MotionModuleConfig(preset="v2"), unet))
        motion = lora.add_trainable(video, "motion-lora", 64, 0)
        domain = lora.add_trainable(unet, "domain-adapter", 128, 0)
    assert (len(motion), sum(p.numel() for p in motion.values())) == (336, 19_333_120)
    assert (len(domain), sum(p.numel() for p in domain.values())) == (256, 25_509_888)
    assert len(lora_to_original(motion)) == 336


def test_group_norm_per_frame_against_plain_torch() -> None:
    unet = image_unet()
    adapter = randomised(fresh_motion_adapter(FROM_BASE, unet))
    per_frame = next(iter(temporal_modules(insert(unet, adapter)).values()))
    pooled = next(iter(temporal_modules(insert(unet, adapter, "pooled")).values()))
    x = torch.randn(2 * 3, 32, 8, 8) * torch.arange(1, 7).view(-1, 1, 1, 1)  # frames of unlike contrast

    groups = x.view(6, 16, -1)
    mean, variance = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, unbiased=False)
    normed = ((groups - mean) / (variance + 1e-6).sqrt()).view_as(x)
    normed = normed * per_frame.norm.weight.view(1, -1, 1, 1) + per_frame.norm.bias.view(1, -1, 1, 1)
    rows = normed.view(2, 3, 32, 8, 8).permute(0, 3, 4, 1, 2).reshape(-1, 3, 32)
    rows = per_frame.proj_out(per_frame.transformer_blocks[0](per_frame.proj_in(rows)))
    expected = x + rows.view(2, 8, 8, 3, 32).permute(0, 3, 4, 1, 2).reshape(6, 32, 8, 8)

    with torch.no_grad():
        assert torch.allclose(per_frame(x, num_frames=3), expected, atol=1e-4)
        assert not torch.allclose(pooled(x, num_frames=3), expected, atol=1e-2)


def test_group_norm_changes_no_parameter_name() -> None:
    unet = image_unet()
    adapter = fresh_motion_adapter(FROM_BASE, unet)
    per_frame, pooled = insert(unet, adapter), insert(unet, adapter, "pooled")
    assert per_frame.state_dict().keys() == pooled.state_dict().keys()
    assert motion_state(per_frame).keys() == adapter.state_dict().keys()


def test_saved_and_loaded_with_more_positions(tmp_path: Path) -> None:
    adapter = randomised(fresh_motion_adapter(FROM_BASE, image_unet()))
    save_motion_module(tmp_path / "mm", adapter, {"preset": "from-base", "group_norm": "per_frame"})
    same, notes = load_motion_module(tmp_path / "mm")
    assert notes == {
        "stage": "motion-module",
        "preset": "from-base",
        "network": "temporal-transformer",
        "group_norm": "per_frame",
        "image_group_norm": "per_frame",
        "beta_schedule": "linear",
        "heads": "4,8,8",
        "norm_groups": "16",
        "max_frames": "32",
    }
    assert all(
        torch.equal(a, b) for a, b in zip(same.state_dict().values(), adapter.state_dict().values(), strict=True)
    )
    longer, _ = load_motion_module(tmp_path / "mm", max_frames=48)
    name = "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe"
    assert longer.state_dict()[name].shape == (1, 48, 32)
    assert torch.equal(longer.state_dict()[name][:, :32], adapter.state_dict()[name])
    assert longer.config.motion_max_seq_length == 48


def test_stock_diffusers_reads_our_folder(tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    adapter = randomised(fresh_motion_adapter(FROM_BASE, image_unet()))
    save_motion_module(tmp_path / "mm", adapter, {})
    read = MotionAdapter.from_pretrained(tmp_path / "mm").state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in adapter.state_dict().items())


def test_another_base_model_is_refused() -> None:
    unet = image_unet()
    other = image_unet(block_out_channels=(32, 64, 64))
    with pytest.raises(UserError, match=r"widths \(32, 64, 64\), not \(32, 64, 96\)"):
        insert(other, fresh_motion_adapter(FROM_BASE, unet))
    with pytest.raises(UserError, match="Preset v3 is for a base model of widths"):
        fresh_motion_adapter(MotionModuleConfig(preset="v3"), unet)


def test_a_folder_that_is_no_motion_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a motion module") as caught:
        load_motion_module(tmp_path)
    assert caught.value.exit_code == 2


def test_missing_tensors_are_listed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_motion_module(tmp_path, fresh_motion_adapter(FROM_BASE, image_unet()), {})
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["up_blocks.0.motion_modules.0.proj_in.weight"]
    save_file(state, file)
    with pytest.raises(UserError, match=r"up_blocks\.0\.motion_modules\.0\.proj_in\.weight is missing"):
        load_motion_module(tmp_path)


def test_recomputed_activations_give_the_same_gradients() -> None:
    unet = image_unet()
    plain = insert(unet, randomised(fresh_motion_adapter(FROM_BASE, unet)))
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    z, text, t = torch.randn(1, 4, 3, 8, 8), torch.randn(3, 32, 128), torch.tensor([500])

    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        model.train()
        model(z, t, text).sample.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, found = gradients(plain), gradients(saving)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)
