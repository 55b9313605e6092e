"""The motion module: temporal transformers between the layers of an image UNet (AnimateDiff, paper sec. 4.2).

B batch, F frames, C channels, h w latents. The network is diffusers' `MotionAdapter` / `UNetMotionModel`, with two
changes that make it equal to the official one. An untrained `proj_out` is zero, so that before training the video model
equals the image model on every frame. The GroupNorms take their statistics as the official ones do, see
`components.motion.layers`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from components.motion.layers import (
    FrameCount,
    PerFrameGroupNorm,
    PooledGroupNorm,
    TemporalAttention,
    TemporalConvolution,
)
from components.motion.presets import PRESETS, GroupNormMode, Network, PresetName, UNetShape, check_preset
from infra.config import Config
from infra.errors import UserError
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel


class MotionModuleConfig(Config):
    """The motion module. Its widths, layers and GroupNorm groups are those of the base model."""

    preset: PresetName = "v3"
    """The released motion module whose sizes and norms it has; `from-base` fits any base model."""
    network: Network = "temporal-transformer"
    """The paper's temporal transformer, or the 1-D temporal convolution of its ablation (sec. 5.3)."""
    group_norm: GroupNormMode = "per_frame"
    """Statistics of the temporal transformers' GroupNorm: `per_frame` as in the official code, or `pooled` over all
    frames as in diffusers."""
    image_group_norm: GroupNormMode | None = None
    """Statistics of the GroupNorms of the image model's resnets in the video model; none is the preset's: `pooled` for
    v1, else `per_frame`."""
    max_frames: int | None = None
    """Length of the positional encoding, in frames; none is the preset's (24 for v1, else 32)."""

    @property
    def positions(self) -> int:
        """`max_frames`, or the preset's."""
        return PRESETS[self.preset].positions if self.max_frames is None else self.max_frames

    @property
    def image_norm(self) -> GroupNormMode:
        """`image_group_norm`, or the preset's."""
        return self.image_group_norm or PRESETS[self.preset].image_group_norm


def fresh_motion_adapter(
    config: MotionModuleConfig, unet: UNet2DConditionModel | UNetShape, seed: int = 0
) -> MotionAdapter:
    """An untrained motion module for a base UNet: random weights, with `proj_out` zero.

    Raises:
        UserError: the preset is for base models of another shape.
    """
    from diffusers import MotionAdapter

    shape = unet if isinstance(unet, UNetShape) else UNetShape.from_config(unet.config)
    check_preset(config.preset, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        adapter = MotionAdapter(
            block_out_channels=shape.widths,
            motion_layers_per_block=shape.layers,
            motion_num_attention_heads=shape.heads,
            motion_norm_num_groups=shape.groups,
            motion_max_seq_length=config.positions,
            use_motion_mid_block=PRESETS[config.preset].mid_block,
        )
        if config.network == "temporal-convolution":
            replace_with_convolutions(adapter)
    for module in temporal_modules(adapter).values():
        nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(module.proj_out.bias)
    return cast("MotionAdapter", adapter)


def temporal_modules(model: nn.Module) -> dict[str, Any]:
    """The temporal transformers (or convolutions) in a `MotionAdapter` or `UNetMotionModel`, by module name."""
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    types = (AnimateDiffTransformer3D, TemporalConvolution)
    return {name: module for name, module in model.named_modules() if isinstance(module, types)}


def network_of(model: nn.Module) -> Network:
    """The type of the temporal modules in a `MotionAdapter` or `UNetMotionModel`."""
    first = next(iter(temporal_modules(model).values()))
    return "temporal-convolution" if isinstance(first, TemporalConvolution) else "temporal-transformer"


def replace_with_convolutions(model: nn.Module) -> None:
    """Replaces every temporal transformer by a new temporal convolution."""
    _replace(model, lambda name, old: TemporalConvolution(old.norm.num_channels, old.norm.num_groups))


def insert_motion_module(
    unet2d: UNet2DConditionModel,
    adapter: MotionAdapter,
    group_norm: GroupNormMode = "per_frame",
    image_group_norm: GroupNormMode = "per_frame",
) -> UNetMotionModel:
    """The video model: a copy of the image UNet with the motion module between its layers.

    Its input is (B, C, F, h, w) and the text encoder's hidden states, repeated for each frame, (B·F, L, D). Its output
    is (B, C, F, h, w). `group_norm` is the mode of the temporal transformers' GroupNorms, `image_group_norm` that of
    the resnets' and of the output's.

    Raises:
        UserError: the motion module was made for base models of another shape.
    """
    from diffusers import MotionAdapter, UNetMotionModel

    _check_fits_base(unet2d, adapter)
    convolution = network_of(adapter) == "temporal-convolution"
    with quiet():
        # from_unet2d builds temporal transformers only and loads the adapter's tensors into them.
        transformers = MotionAdapter.from_config(dict(adapter.config)) if convolution else adapter
        unet = UNetMotionModel.from_unet2d(unet2d, transformers)
    if convolution:
        convolutions = temporal_modules(adapter)
        _replace(unet, lambda name, old: copy.deepcopy(convolutions[name]).to(unet2d.device, unet2d.dtype))
    for module in temporal_modules(unet).values():
        _set_norm(module, "norm", PerFrameGroupNorm if group_norm == "per_frame" else nn.GroupNorm)
        for block in getattr(module, "transformer_blocks", ()):
            block.attn1.set_processor(TemporalAttention())
            block.attn2.set_processor(TemporalAttention())
    if image_group_norm == "pooled":
        _pool_image_norms(unet)
    return cast("UNetMotionModel", unet)


def share_image_weights(video: UNetMotionModel, unet2d: UNet2DConditionModel) -> None:
    """Makes the spatial layers of the video model use the parameters of the image UNet that it was copied from, so that
    there is one copy of them (3.2 GiB of SD 1.5 in fp32), and a LoRA on one of the two is on both."""
    for name, parameter in unet2d.named_parameters():
        owner, _, own_name = name.rpartition(".")
        module = video.get_submodule(owner)
        assert getattr(module, own_name).shape == parameter.shape, name
        setattr(module, own_name, parameter)


def motion_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The motion module's part of the state dict of a `MotionAdapter` or `UNetMotionModel`, with the positional
    encodings."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".motion_modules." in name}


def config_metadata(config: MotionModuleConfig) -> dict[str, object]:
    """The metadata fields that hold the config."""
    return {"preset": config.preset, "group_norm": config.group_norm, "image_group_norm": config.image_norm}


def _check_fits_base(unet2d: UNet2DConditionModel, adapter: MotionAdapter) -> None:
    base, motion = unet2d.config, adapter.config
    pairs = {
        "widths": (tuple(base.block_out_channels), tuple(motion.block_out_channels)),
        "layers per block": (base.layers_per_block, motion.motion_layers_per_block),
        "GroupNorm groups": (base.norm_num_groups, motion.motion_norm_num_groups),
    }
    if wrong := [
        f"{name} {of_base}, not {of_motion}" for name, (of_base, of_motion) in pairs.items() if of_base != of_motion
    ]:
        raise UserError(
            f"The motion module does not fit the base model, which has {'; '.join(wrong)}.",
            "It was made for another family of base models.",
            "Use a motion module and a base model of the same family.",
        )


def _replace(model: nn.Module, make: Callable[[str, Any], nn.Module]) -> None:
    """Replaces every temporal module by `make(name, module)`."""
    for name, old in temporal_modules(model).items():
        parent, _, index = name.rpartition(".")
        cast(nn.ModuleList, model.get_submodule(parent))[int(index)] = make(name, old)


def _set_norm(owner: nn.Module, name: str, norm_type: Callable[..., nn.GroupNorm]) -> None:
    """Replaces the GroupNorm `name` by one of another type with the same parameters."""
    old = getattr(owner, name)
    new = norm_type(old.num_groups, old.num_channels, old.eps, device="meta")
    new.weight, new.bias = old.weight, old.bias
    setattr(owner, name, new)


def _pool_image_norms(unet: UNetMotionModel) -> None:
    """As in the official v1: GroupNorms of resnets and output take their statistics over all frames of a clip."""
    from diffusers.models.resnet import ResnetBlock2D

    frame_count = FrameCount()
    unet.register_forward_pre_hook(frame_count.record, with_kwargs=True)
    norm_type = partial(PooledGroupNorm, frame_count=frame_count)
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            _set_norm(module, "norm1", norm_type)
            _set_norm(module, "norm2", norm_type)
    _set_norm(unet, "conv_norm_out", norm_type)
