"""The motion module: temporal transformers between the layers of an image UNet (AnimateDiff, paper sec. 4.2).

B batch, F frames, C channels, h w latents. The network is diffusers' `MotionAdapter` / `UNetMotionModel`, with two
differences that bring it back to the official one: a fresh `proj_out` is zero, so that at step 0 the video model is the
image model, and the temporal transformers' GroupNorm sees one frame at a time (official animatediff/models/
motion_module.py, VanillaTemporalModule), where diffusers pools over all frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.quiet import quiet
from components.weight_files import KINDS, notes_of, read_header, write_weights
from infra.config import Config
from infra.errors import UserError

if TYPE_CHECKING:
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

Preset = Literal["v1", "v2", "v3", "sdxl-beta", "from-base"]
GroupNormMode = Literal["per_frame", "pooled"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
SD1_CHANNELS, SDXL_CHANNELS = (320, 640, 1280, 1280), (320, 640, 1280)
# Preset to (widths of the base model, longest window in frames, motion module in the mid block); widths None: any.
PRESETS: dict[str, tuple[tuple[int, ...] | None, int, bool]] = {
    "v1": (SD1_CHANNELS, 24, False),
    "v2": (SD1_CHANNELS, 32, True),
    "v3": (SD1_CHANNELS, 32, False),
    "sdxl-beta": (SDXL_CHANNELS, 32, False),
    "from-base": (None, 32, False),
}


class MotionModuleConfig(Config):
    """The motion module's shape. Widths, layers and groups follow the base model."""

    preset: Preset = "v3"
    """Which released module it is shaped like; `from-base` takes any base model. Official v1 also pools the image
    layers' GroupNorms over frames, which diffusers cannot; here `v1` is its shapes and its 24 positions."""
    group_norm: GroupNormMode = "per_frame"
    """`per_frame` as the official code, or `pooled` over the window as stock diffusers."""
    max_frames: int | None = None
    """Longest window, in frames; none is the preset's (24 for v1, else 32)."""

    @property
    def positions(self) -> int:
        """Length of the positional encoding, in frames."""
        return PRESETS[self.preset][1] if self.max_frames is None else self.max_frames


class PerFrameGroupNorm(nn.GroupNorm):
    """GroupNorm of (B, C, F, h, w) with statistics per frame; its parameters are named as GroupNorm's."""

    def forward(self, input: Tensor) -> Tensor:
        frames_first = input.transpose(1, 2)  # the caller permuted (B·F, C, h, w), so this is contiguous again
        batch, frames = frames_first.shape[:2]
        normed = super().forward(frames_first.flatten(0, 1))
        return normed.view(batch, frames, *normed.shape[1:]).transpose(1, 2)


def fresh_motion_adapter(config: MotionModuleConfig, unet: UNet2DConditionModel, seed: int = 0) -> MotionAdapter:
    """An untrained motion module for the base UNet: random inside, zero at every output.

    Raises:
        UserError: the preset is for a base model of other widths.
    """
    from diffusers import MotionAdapter

    channels = tuple(int(width) for width in unet.config.block_out_channels)
    widths, _, mid_block = PRESETS[config.preset]
    if widths is not None and widths != channels:
        raise UserError(
            f"Preset {config.preset} is for a base model of widths {widths}; this one has {channels}.",
            "A motion module fits between the layers of one family of models.",
            "Use preset from-base, or another base model.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = MotionAdapter(
            block_out_channels=channels,
            motion_layers_per_block=unet.config.layers_per_block,
            motion_num_attention_heads=_heads(channels),
            motion_norm_num_groups=unet.config.norm_num_groups,
            motion_max_seq_length=config.positions,
            use_motion_mid_block=mid_block,
        )
    for module in temporal_transformers(adapter).values():
        nn.init.zeros_(module.proj_out.weight)
        nn.init.zeros_(module.proj_out.bias)
    return adapter


def _heads(channels: tuple[int, ...]) -> int | tuple[int, ...]:
    """8 heads as the official module; 4 where a head would be narrower than 8 channels."""
    heads = tuple(8 if width // 8 >= 8 else 4 for width in channels)
    return heads[0] if len(set(heads)) == 1 else heads


def temporal_transformers(model: nn.Module) -> dict[str, Any]:
    """The temporal transformers inside a `MotionAdapter` or `UNetMotionModel`, by their names."""
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    return {name: part for name, part in model.named_modules() if isinstance(part, AnimateDiffTransformer3D)}


def insert(
    unet2d: UNet2DConditionModel, adapter: MotionAdapter, group_norm: GroupNormMode = "per_frame"
) -> UNetMotionModel:
    """The video model: a copy of the image UNet with the motion module between its layers.

    It maps (B, C, F, h, w) and text states repeated to (B·F, L, D) to noise (B, C, F, h, w).

    Raises:
        UserError: the motion module was made for a base model of another shape.
    """
    from diffusers import UNetMotionModel

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
    with quiet():
        unet = UNetMotionModel.from_unet2d(unet2d, adapter)
    if group_norm == "per_frame":
        for module in temporal_transformers(unet).values():
            norm = PerFrameGroupNorm(module.norm.num_groups, module.norm.num_channels, module.norm.eps, device="meta")
            norm.weight, norm.bias = module.norm.weight, module.norm.bias
            module.norm = norm
    return cast("UNetMotionModel", unet)


def checkpoint_activations(unet: nn.Module) -> None:
    """Trades time for memory in training, the temporal transformers included.

    diffusers' own switch leaves out all motion modules but the mid block's: 15.3 GiB against 2.6 GiB of saved
    activations at 256 px, B=4, F=16 (estimated).
    """
    cast(Any, unet).enable_gradient_checkpointing()
    for name, module in temporal_transformers(unet).items():
        if not name.startswith("mid_block"):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def motion_state(model: nn.Module) -> dict[str, Tensor]:
    """The motion module's tensors inside a `MotionAdapter` or `UNetMotionModel`, position buffers included."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".motion_modules." in name}


def save_motion_module(folder: Path, adapter: MotionAdapter, notes: Mapping[str, object]) -> None:
    """Writes a diffusers MotionAdapter folder, `notes` in the weights' metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter.save_config(folder)
    write_weights(folder / WEIGHTS, adapter.state_dict(), {"stage": "motion-module", **notes})


def load_motion_module(path: Path, max_frames: int | None = None) -> tuple[MotionAdapter, dict[str, str]]:
    """A motion module in fp32 and its notes, from a diffusers MotionAdapter folder or the original format.

    `max_frames` asks for another longest window; the sinusoidal positions are made anew, the weights stay.

    Raises:
        UserError: no motion module there, or its tensors do not fit its config.
    """
    if path.is_file():
        from components.formats import adapter_from_original

        return adapter_from_original(path, max_frames)
    if not (path / "config.json").is_file() or not (path / WEIGHTS).is_file():
        raise UserError(
            f"{path} is not a motion module.",
            f"A motion module is a folder with config.json and {WEIGHTS}, or a file in the original format.",
            "Check the path given as motion module.",
        )
    header = read_header(path / WEIGHTS)
    if header.kind != "motion-module":
        raise UserError(
            f"{path} holds {KINDS[header.kind]}, not a motion module.",
            "Its tensors are not those of temporal transformers.",
            "Check the path given as motion module.",
        )
    from diffusers import MotionAdapter

    with quiet():
        settings = MotionAdapter.load_config(path)
    return build_adapter(dict(settings), load_file(path / WEIGHTS), path, max_frames), notes_of(header)


def build_adapter(
    settings: Mapping[str, Any], state: Mapping[str, Tensor], path: Path, max_frames: int | None = None
) -> MotionAdapter:
    """A `MotionAdapter` of these settings holding these tensors; positions are regenerated when their number differs.

    Raises:
        UserError: tensors are missing, unknown, or of other sizes; the message lists them. `path` is named in it.
    """
    from diffusers import MotionAdapter

    wanted = dict(settings) if max_frames is None else {**settings, "motion_max_seq_length": max_frames}
    with quiet():
        adapter = MotionAdapter.from_config(wanted)
    own = adapter.state_dict()
    given = {name: tensor for name, tensor in state.items() if not _is_other_length(name, tensor, own)}
    missing = [name for name in own if name not in given and not name.endswith("pos_embed.pe")]
    wrong = [*(f"{name} is missing" for name in missing), *(f"{name} is unknown" for name in given if name not in own)]
    wrong += [
        f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} does not hold the tensors of its motion module: {'; '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more." if len(wrong) > 3 else "."),
            "The file is damaged, incomplete, or of another kind.",
            "Make or download it again.",
        )
    adapter.load_state_dict({name: tensor.float() for name, tensor in given.items()}, strict=False)
    return cast("MotionAdapter", adapter.eval())


def _is_other_length(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> bool:
    return name.endswith("pos_embed.pe") and name in own and tensor.shape != own[name].shape
