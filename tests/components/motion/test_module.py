from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from components.files.state_dict_keys import lora_to_original
from components.lora import lora
from components.motion import layers
from components.motion.files import load_motion_module, save_motion_module
from components.motion.module import (
    MotionModuleConfig,
    fresh_motion_adapter,
    insert_motion_module,
    motion_state_dict,
    temporal_modules,
)
from components.motion.presets import BASE_SHAPES
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
    video = insert_motion_module(unet, fresh_motion_adapter(FROM_BASE, unet), group_norm)
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
    video = insert_motion_module(unet, randomised(fresh_motion_adapter(FROM_BASE, unet)))
    z, text, t = torch.randn(1, 4, 4, 8, 8), torch.randn(4, 32, 128), torch.tensor([500])
    other = z.clone()
    other[:, :, 3] += 1
    with torch.no_grad():
        difference = video(z, t, text).sample - video(other, t, text).sample
    assert difference[:, :, 0].abs().max() > 1e-4


@pytest.mark.parametrize(
    ("preset", "base", "parameters", "modules", "positions", "image_norm"),
    [
        ("v1", "sd15", 417_137_600, 20, 24, "pooled"),
        ("v2", "sd15", 453_209_280, 21, 32, "per_frame"),
        ("v3", "sd15", 417_137_600, 20, 32, "per_frame"),
        ("sdxl-beta", "sdxl", 236_779_200, 15, 32, "per_frame"),
    ],
)
def test_presets_have_the_released_sizes(
    preset: Any, base: str, parameters: int, modules: int, positions: int, image_norm: str
) -> None:
    """Counts of the released files; tests of formats compare names and shapes."""
    config = MotionModuleConfig(preset=preset)
    with torch.device("meta"):
        adapter = fresh_motion_adapter(config, BASE_SHAPES[base])
        convolution = fresh_motion_adapter(config.replace(network="temporal-convolution"), BASE_SHAPES[base])
    assert count(adapter) == parameters
    assert count(convolution) == pytest.approx(parameters, rel=0.02)
    assert len(temporal_modules(adapter)) == len(temporal_modules(convolution)) == modules
    assert (config.positions, config.image_norm, config.group_norm) == (positions, image_norm, "per_frame")
    assert hasattr(adapter.mid_block, "motion_modules") == (preset == "v2")


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_loras_have_the_released_sizes() -> None:
    with torch.device("meta"):
        unet = sd_unet((320, 640, 1280, 1280))
        video = insert_motion_module(unet, fresh_motion_adapter(MotionModuleConfig(preset="v2"), unet))
        motion = lora.add_trainable_lora(video, "motion-lora", 64, 0)
        domain = lora.add_trainable_lora(unet, "domain-adapter", 128, 0)
    assert (len(motion), sum(p.numel() for p in motion.values())) == (336, 19_333_120)
    assert (len(domain), sum(p.numel() for p in domain.values())) == (256, 25_509_888)
    assert len(lora_to_original(motion)) == 336


def test_group_norm_per_frame_against_plain_torch() -> None:
    unet = image_unet()
    adapter = randomised(fresh_motion_adapter(FROM_BASE, unet))
    per_frame = next(iter(temporal_modules(insert_motion_module(unet, adapter)).values()))
    pooled = next(iter(temporal_modules(insert_motion_module(unet, adapter, "pooled")).values()))
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
    per_frame, pooled = insert_motion_module(unet, adapter), insert_motion_module(unet, adapter, "pooled")
    assert per_frame.state_dict().keys() == pooled.state_dict().keys()
    assert motion_state_dict(per_frame).keys() == adapter.state_dict().keys()


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
        insert_motion_module(other, fresh_motion_adapter(FROM_BASE, unet))
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


def test_attention_is_cut_before_the_batch_is_too_long_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """B·h·w = 131,072 sequences of two frames; equal to attention in one piece, no piece past 65,535."""
    unet = image_unet()
    block = next(
        iter(temporal_modules(insert_motion_module(unet, randomised(fresh_motion_adapter(FROM_BASE, unet)))).values())
    )
    attention = block.transformer_blocks[0].attn1
    pieces: list[int] = []
    attention.to_q.register_forward_pre_hook(lambda layer, args: pieces.append(len(args[0])))
    rows = torch.randn(131_072, 2, 32)
    with torch.no_grad():
        cut = attention(rows)
        assert sum(pieces) == 131_072
        assert max(pieces) <= 65_535
        monkeypatch.setattr(layers, "CUDA_BATCH_MAX", 10**9)
        pieces.clear()
        assert torch.allclose(attention(rows), cut, atol=1e-5)
        assert pieces == [131_072]


def test_a_convolution_over_frames_sees_seven_to_each_side_and_comes_back_from_disk(tmp_path: Path) -> None:
    unet = image_unet()
    config = FROM_BASE.replace(network="temporal-convolution")
    adapter = fresh_motion_adapter(config, unet)
    z, text, t = torch.randn(1, 4, 4, 8, 8), torch.randn(4, 32, 128), torch.tensor([500])
    with torch.no_grad():
        video = insert_motion_module(unet, adapter)
        assert torch.allclose(video(z, t, text).sample[:, :, 2], unet(z[:, :, 2], t, text[2:3]).sample, atol=1e-5)
        save_motion_module(tmp_path / "mm", randomised(adapter), {"preset": "from-base"})
        read, notes = load_motion_module(tmp_path / "mm")
        assert notes["network"] == "temporal-convolution"
        assert torch.equal(
            insert_motion_module(unet, read)(z, t, text).sample, insert_motion_module(unet, adapter)(z, t, text).sample
        )

        module = next(iter(temporal_modules(insert_motion_module(unet, adapter)).values()))
        frames = torch.randn(20, 32, 4, 4)
        other = frames.clone()
        other[10] = torch.randn(32, 4, 4)
        moved = (module(frames, num_frames=20) - module(other, num_frames=20)).abs().flatten(1).amax(1) > 1e-6
    assert [index for index, changed in enumerate(moved.tolist()) if changed] == list(range(3, 18))


def test_official_v1_pools_the_image_norms_and_says_so_in_its_file(tmp_path: Path) -> None:
    """A model with pooled norms answers otherwise, and survives copies and recomputation."""
    unet = image_unet()
    adapter = randomised(fresh_motion_adapter(FROM_BASE, unet))
    per_frame, pooled = insert_motion_module(unet, adapter), insert_motion_module(unet, adapter, "per_frame", "pooled")
    brightness = torch.linspace(0.5, 2, 4).view(1, 1, -1, 1, 1)
    z, text, t = torch.randn(1, 4, 4, 8, 8) * brightness, torch.randn(4, 32, 128), torch.tensor([500])
    with torch.no_grad():
        assert (per_frame(z, t, text).sample - pooled(z, t, text).sample).abs().max() > 1e-2
        twin = copy.deepcopy(pooled)
        pooled(z[:, :, :2], t, text[:2])  # another window in between
        assert torch.equal(twin(sample=z, timestep=t, encoder_hidden_states=text).sample, pooled(z, t, text).sample)
    save_motion_module(tmp_path / "mm", adapter, {"image_group_norm": "pooled"})
    assert load_motion_module(tmp_path / "mm")[1]["image_group_norm"] == "pooled"
    save_motion_module(tmp_path / "odd", adapter, {"group_norm": "banana"})
    with pytest.raises(UserError, match="group_norm 'banana', and possible is per_frame or pooled"):
        load_motion_module(tmp_path / "odd")
