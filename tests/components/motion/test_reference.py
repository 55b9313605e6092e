"""The project's video model against `reference_model`, which shares no code with it: fp32, 1e-5, every tensor random.

B clips, F frames, C channels, h w latents, L words, D their width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from components.files.state_dict_keys import motion_module_to_original
from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module, temporal_modules
from tests.components.conftest import pocket_unet_config
from tests.components.motion.reference_model import MID, PE, NormMode, VideoUNet, sinusoid, to_clips, to_frames

MODES: tuple[NormMode, ...] = ("per_frame", "pooled")
WIDE = "down_blocks.0.motion_modules.0"  # of `wide`: 320 channels, 8 heads, 32 groups, as in SD 1.5's first level


@dataclass(frozen=True)
class Parts:
    """An image UNet and a motion module for it."""

    unet2d: Any
    adapter: Any

    def reference(self, norm: NormMode = "per_frame", image_norm: NormMode = "per_frame") -> VideoUNet:
        config = self.adapter.config
        heads = config.motion_num_attention_heads
        tensors = motion_module_to_original(self.adapter.state_dict())
        return VideoUNet(self.unet2d, tensors, heads, config.motion_norm_num_groups, norm, image_norm)

    def stock(self) -> Any:
        """diffusers' own video model, untouched."""
        from diffusers import UNetMotionModel

        return UNetMotionModel.from_unet2d(self.unet2d, self.adapter).eval()


def randomised(model: Any, seed: int) -> Any:
    """Every parameter drawn, none left zero or one; weights of std 1/sqrt(inputs) keep what flows of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(drawn / math.sqrt(parameter[0].numel()))
            else:
                parameter.copy_(0.2 * drawn + float("norm" in name and name.endswith("weight")))
    return model.eval()


def motion_adapter(adapter: Any, **changes: Any) -> Any:
    from diffusers import MotionAdapter

    config = {key: value for key, value in adapter.config.items() if not key.startswith("_")}
    return MotionAdapter(**{**config, **changes})


@pytest.fixture(scope="module")
def small() -> Parts:
    from diffusers import UNet2DConditionModel

    unet2d = randomised(UNet2DConditionModel(**pocket_unet_config()), 1)
    return Parts(unet2d, randomised(fresh_motion_adapter(MotionModuleConfig(preset="from-base"), unet2d), 2))


@pytest.fixture(scope="module")
def small_with_mid_block(small: Parts) -> Parts:
    return Parts(small.unet2d, randomised(motion_adapter(small.adapter, use_motion_mid_block=True), 3))


@pytest.fixture(scope="module")
def wide() -> Parts:
    from diffusers import MotionAdapter, UNet2DConditionModel

    unet2d = UNet2DConditionModel(
        down_block_types=["DownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "UpBlock2D"],
        block_out_channels=(320, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    adapter = MotionAdapter((320, 64), motion_layers_per_block=1, use_motion_mid_block=False)
    return Parts(randomised(unet2d, 4), randomised(adapter, 5))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unlike_frames(*shape: int) -> Tensor:
    """(B, C, F, h, w) of order one, with frames of unlike brightness."""
    return (drawn(*shape) + 0.5) * torch.linspace(0.2, 2.0, shape[2]).view(-1, 1, 1)


def on_frames(module: Any, x_BCFhw: Tensor) -> Tensor:
    """(B, C, F, h, w) through a temporal transformer of the project or of diffusers."""
    with torch.no_grad():
        return to_clips(module(to_frames(x_BCFhw), num_frames=x_BCFhw.shape[2]), x_BCFhw.shape[0])


def noise(video: Any, z_BCFhw: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
    """(B, C, F, h, w) from a video model of the project or of diffusers, which take the text once a frame."""
    with torch.no_grad():
        eps_BCFhw: Tensor = video(z_BCFhw, t_B, text_BLD.repeat_interleave(z_BCFhw.shape[2], 0)).sample
    return eps_BCFhw


def whole_input() -> tuple[Tensor, Tensor, Tensor]:
    """Two clips with their own times and texts."""
    return unlike_frames(2, 4, 5, 16, 16), torch.tensor([10, 700]), drawn(2, 7, 128, seed=6)


def assert_same(ours: Tensor, reference: Tensor) -> None:
    assert 0.3 < reference.std() < 5, "not of order one: the tolerance would mean something else"
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def difference(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


def test_the_reference_without_motion_is_the_image_model_on_every_frame(small_with_mid_block: Parts) -> None:
    reference = small_with_mid_block.reference()
    with torch.no_grad():
        for module in reference.motion.values():
            module.temporal_transformer["proj_out"].weight.zero_()
            module.temporal_transformer["proj_out"].bias.zero_()
        z, t, text = whole_input()
        for f in range(z.shape[2]):
            assert_same(small_with_mid_block.unet2d(z[:, :, f], t, text).sample, reference(z, t, text)[:, :, f])


def test_positions_are_the_sinusoids_of_the_paper(small_with_mid_block: Parts) -> None:
    tensors = motion_module_to_original(small_with_mid_block.adapter.state_dict())
    positions = {name: tensor for name, tensor in tensors.items() if name.endswith("pos_encoder.pe")}
    assert len(positions) == 2 * 10
    assert f"{MID}.{PE}" in positions
    for pe in positions.values():
        torch.testing.assert_close(pe, sinusoid(*pe.shape[1:]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 16])
@pytest.mark.parametrize("norm", MODES)
def test_each_temporal_transformer_is_the_reference_module(small: Parts, norm: NormMode, frames: int) -> None:
    ours = temporal_modules(insert_motion_module(small.unet2d, small.adapter, group_norm=norm))
    reference = small.reference(norm).motion
    assert ours.keys() == reference.keys()
    for place, module in ours.items():
        x = unlike_frames(2, module.norm.num_channels, frames, 6, 5)
        with torch.no_grad():
            expected = reference[place](x)
        assert difference(expected, x) > 0.3
        assert_same(on_frames(module, x), expected)


@pytest.mark.parametrize("norm", MODES)
def test_a_320_channel_temporal_transformer_is_the_reference_module(wide: Parts, norm: NormMode) -> None:
    module = temporal_modules(insert_motion_module(wide.unet2d, wide.adapter, group_norm=norm))[WIDE]
    x = unlike_frames(2, 320, 16, 4, 4)
    with torch.no_grad():
        assert_same(on_frames(module, x), wide.reference(norm).motion[WIDE](x))


def test_small_activations_show_every_epsilon(small: Parts) -> None:
    adapter = motion_adapter(small.adapter)
    adapter.load_state_dict(small.adapter.state_dict())
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "proj_in" in name or "to_out" in name:  # what the three layer norms see
                parameter.mul_(0.01)
    scaled = Parts(small.unet2d, adapter)
    reference = scaled.reference().motion
    for place, module in temporal_modules(insert_motion_module(scaled.unet2d, adapter)).items():
        x = 0.003 * unlike_frames(2, module.norm.num_channels, 3, 6, 5)  # what the group norm sees
        with torch.no_grad():
            assert_same(on_frames(module, x), reference[place](x))


@pytest.mark.parametrize("image_norm", MODES)
@pytest.mark.parametrize("norm", MODES)
@pytest.mark.parametrize("parts", ["small", "small_with_mid_block"])
def test_the_whole_video_model_is_the_reference(
    request: pytest.FixtureRequest, parts: str, norm: NormMode, image_norm: NormMode
) -> None:
    chosen: Parts = request.getfixturevalue(parts)
    reference = chosen.reference(norm, image_norm)
    assert (MID in reference.motion) == (parts == "small_with_mid_block")
    video = insert_motion_module(chosen.unet2d, chosen.adapter, group_norm=norm, image_group_norm=image_norm).eval()
    assert_same(noise(video, *whole_input()), reference(*whole_input()))


def test_every_mode_differs_from_every_other_on_frames_of_unlike_brightness(small: Parts) -> None:
    outputs = [small.reference(norm, image_norm)(*whole_input()) for norm in MODES for image_norm in MODES]
    assert min(difference(one, other) for one, other in combinations(outputs, 2)) > 0.05


def test_the_default_is_the_official_v2_and_v3(small: Parts) -> None:
    video = insert_motion_module(small.unet2d, small.adapter).eval()
    assert_same(noise(video, *whole_input()), small.reference("per_frame", "per_frame")(*whole_input()))


def test_stock_diffusers_is_the_reference_with_pooled_motion_norms(small_with_mid_block: Parts) -> None:
    pooled = small_with_mid_block.reference(norm="pooled", image_norm="per_frame")
    assert_same(noise(small_with_mid_block.stock(), *whole_input()), pooled(*whole_input()))


def test_stock_diffusers_is_measurably_not_the_official_model(wide: Parts) -> None:
    stock = wide.stock().get_submodule(WIDE)
    official, pooled = wide.reference().motion[WIDE], wide.reference("pooled").motion[WIDE]
    frames = drawn(1, 320, 16, 16, 16)
    drift = torch.linspace(0.8, 1.2, 16).view(-1, 1, 1)
    figures = []
    for x in (frames, frames * drift):
        with torch.no_grad():
            ours, expected = on_frames(stock, x), official(x)
            assert_same(ours, pooled(x))
        figures.append(difference(ours - x, expected - x))
    independent, drifting = figures
    print(f"stock diffusers' residual differs by {independent:.1%} on i.i.d. frames, {drifting:.1%} on drifting ones")
    assert 0.005 < independent < 0.1
    assert 0.03 < drifting < 0.3
