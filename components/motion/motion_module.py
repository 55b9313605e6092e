"""The motion module: temporal transformers between the layers of an image UNet (AnimateDiff, paper sec. 4.2).

B batch, F frames, C channels, h w latents. The network is diffusers' `MotionAdapter` / `UNetMotionModel`, with what
brings it back to the official one: a fresh `proj_out` is zero, so that at step 0 the video model is the image model,
and GroupNorms take their statistics over the frames that the official ones do (see `components.motion.temporal`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from components.motion.presets import PRESETS, GroupNormMode, Network, PresetName, UNetShape, check_base
from components.motion.temporal import (
    PerFrameGroupNorm,
    PooledGroupNorm,
    TemporalAttention,
    TemporalConvolution,
    Window,
)
from infra.config import Config
from infra.errors import UserError
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel


class MotionModuleConfig(Config):
    """The motion module's shape. Widths, layers and groups follow the base model."""

    preset: PresetName = "v3"
    """Which released module it is like in shape and norms; `from-base` takes any base model."""
    network: Network = "temporal-transformer"
    """The paper's temporal transformer, or the 1-D temporal convolution of its ablation, of the same size."""
    group_norm: GroupNormMode = "per_frame"
    """The temporal transformers' own norm: `per_frame` as the official code, or `pooled` over the window as stock
    diffusers."""
    image_group_norm: GroupNormMode | None = None
    """The norms of the image model's resnets in the video model; none is the preset's: `pooled` in v1, else
    `per_frame`."""
    max_frames: int | None = None
    """Longest window, in frames; none is the preset's (24 for v1, else 32)."""

    @property
    def positions(self) -> int:
        """Length of the positional encoding, in frames."""
        return PRESETS[self.preset].positions if self.max_frames is None else self.max_frames

    @property
    def image_norm(self) -> GroupNormMode:
        """`image_group_norm`, or the preset's."""
        return self.image_group_norm or PRESETS[self.preset].image_group_norm


def fresh_motion_adapter(
    config: MotionModuleConfig, unet: UNet2DConditionModel | UNetShape, seed: int = 0
) -> MotionAdapter:
    """An untrained motion module for a base UNet or its shape: random inside, zero at every output.

    Raises:
        UserError: the preset is for a base model of other widths.
    """
    from diffusers import MotionAdapter

    shape = unet if isinstance(unet, UNetShape) else UNetShape.of(unet.config)
    check_base(config.preset, shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = MotionAdapter(
            block_out_channels=shape.widths,
            motion_layers_per_block=shape.layers,
            motion_num_attention_heads=shape.heads,
            motion_norm_num_groups=shape.groups,
            motion_max_seq_length=config.positions,
            use_motion_mid_block=PRESETS[config.preset].mid_block,
        )
        if config.network == "temporal-convolution":
            to_convolutions(adapter)
    for module in temporal_modules(adapter).values():
        nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(module.proj_out.bias)
    return cast("MotionAdapter", adapter)


def temporal_modules(model: nn.Module) -> dict[str, Any]:
    """The temporal transformers (or convolutions) inside a `MotionAdapter` or `UNetMotionModel`, by their names."""
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    kinds = (AnimateDiffTransformer3D, TemporalConvolution)
    return {name: part for name, part in model.named_modules() if isinstance(part, kinds)}


def network_of(model: nn.Module) -> Network:
    """Which network the motion modules of a `MotionAdapter` or `UNetMotionModel` are."""
    first = next(iter(temporal_modules(model).values()))
    return "temporal-convolution" if isinstance(first, TemporalConvolution) else "temporal-transformer"


def to_convolutions(model: nn.Module) -> None:
    """Puts a fresh temporal convolution in the place of every temporal transformer."""
    _replace(model, lambda name, old: TemporalConvolution(old.norm.num_channels, old.norm.num_groups))


def _replace(model: nn.Module, make: Callable[[str, Any], nn.Module]) -> None:
    for name, old in temporal_modules(model).items():
        parent, _, index = name.rpartition(".")
        cast(nn.ModuleList, model.get_submodule(parent))[int(index)] = make(name, old)


def insert(
    unet2d: UNet2DConditionModel,
    adapter: MotionAdapter,
    group_norm: GroupNormMode = "per_frame",
    image_group_norm: GroupNormMode = "per_frame",
) -> UNetMotionModel:
    """The video model: a copy of the image UNet with the motion module between its layers.

    It maps (B, C, F, h, w) and text states repeated to (B·F, L, D) to noise (B, C, F, h, w). `group_norm` is the
    temporal transformers' own, `image_group_norm` that of the resnets and the output.

    Raises:
        UserError: the motion module was made for a base model of another shape.
    """
    from diffusers import MotionAdapter, UNetMotionModel

    of_base, of_module = unet2d.config, adapter.config
    pairs = {
        "widths": (tuple(of_base.block_out_channels), tuple(of_module.block_out_channels)),
        "layers a block": (of_base.layers_per_block, of_module.motion_layers_per_block),
        "GroupNorm groups": (of_base.norm_num_groups, of_module.motion_norm_num_groups),
    }
    if wrong := [f"{name} {base}, not {module}" for name, (base, module) in pairs.items() if base != module]:
        raise UserError(
            f"The motion module does not fit the base model, which has {'; '.join(wrong)}.",
            "It was made for another family of base models.",
            "Use a motion module and a base model of the same family.",
        )
    convolution = network_of(adapter) == "temporal-convolution"
    with quiet():
        # from_unet2d knows the temporal transformer only, and loads the adapter's tensors into it.
        given = MotionAdapter.from_config(dict(of_module)) if convolution else adapter
        unet = UNetMotionModel.from_unet2d(unet2d, given)
    if convolution:
        own = temporal_modules(adapter)
        _replace(unet, lambda name, old: copy.deepcopy(own[name]).to(unet2d.device, unet2d.dtype))
    for module in temporal_modules(unet).values():
        _set_norm(module, "norm", PerFrameGroupNorm if group_norm == "per_frame" else nn.GroupNorm)
        for block in getattr(module, "transformer_blocks", ()):
            block.attn1.set_processor(TemporalAttention())
            block.attn2.set_processor(TemporalAttention())
    if image_group_norm == "pooled":
        _pool_image_norms(unet)
    return cast("UNetMotionModel", unet)


def _set_norm(owner: nn.Module, name: str, kind: Callable[..., nn.GroupNorm]) -> None:
    """Another kind of GroupNorm around the same parameters."""
    old = getattr(owner, name)
    new = kind(old.num_groups, old.num_channels, old.eps, device="meta")
    new.weight, new.bias = old.weight, old.bias
    setattr(owner, name, new)


def _pool_image_norms(unet: UNetMotionModel) -> None:
    """Official v1: the norms of every resnet and of the output see all frames of a clip at once."""
    from diffusers.models.resnet import ResnetBlock2D

    window = Window()
    unet.register_forward_pre_hook(window.see, with_kwargs=True)
    kind = partial(PooledGroupNorm, window=window)
    for part in unet.modules():
        if isinstance(part, ResnetBlock2D):
            _set_norm(part, "norm1", kind)
            _set_norm(part, "norm2", kind)
    _set_norm(unet, "conv_norm_out", kind)


def motion_state(model: nn.Module) -> dict[str, Tensor]:
    """The motion module's tensors inside a `MotionAdapter` or `UNetMotionModel`, position buffers included."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".motion_modules." in name}


def motion_notes(config: MotionModuleConfig) -> dict[str, object]:
    """What a motion module's file says of its config."""
    return {"preset": config.preset, "group_norm": config.group_norm, "image_group_norm": config.image_norm}
