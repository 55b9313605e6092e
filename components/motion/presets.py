"""Presets, one per released motion module, and the sizes that a motion module takes from its base model's UNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import UserError

PresetName = Literal["v1", "v2", "v3", "sdxl-beta", "from-base"]
GroupNormMode = Literal["per_frame", "pooled"]
Network = Literal["temporal-transformer", "temporal-convolution"]


@dataclass(frozen=True)
class UNetShape:
    """The sizes of a base model's UNet on which those of its motion module depend."""

    widths: tuple[int, ...]
    """Channels per level; `block_out_channels` in diffusers."""
    layers: int | tuple[int, ...]
    """Layers per block; `layers_per_block` in diffusers."""
    groups: int
    """GroupNorm groups; `norm_num_groups` in diffusers."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> UNetShape:
        """From the config of a `UNet2DConditionModel`."""
        layers = config["layers_per_block"]
        return cls(
            tuple(int(width) for width in config["block_out_channels"]),
            layers if isinstance(layers, int) else tuple(layers),
            int(config["norm_num_groups"]),
        )

    @property
    def heads(self) -> int | tuple[int, ...]:
        """Attention heads: 8 as in the official module, or 4 where a head would have fewer than 8 channels. One number,
        or one per level if they differ."""
        heads = tuple(8 if width // 8 >= 8 else 4 for width in self.widths)
        return heads[0] if len(set(heads)) == 1 else heads


BASE_SHAPES = {"sd15": UNetShape((320, 640, 1280, 1280), 2, 32), "sdxl": UNetShape((320, 640, 1280), 2, 32)}
"""The UNets of Stable Diffusion 1.5 and SDXL."""


@dataclass(frozen=True)
class Preset:
    """What is fixed by a release."""

    base: str | None
    """A key of `BASE_SHAPES`; None for any base model."""
    positions: int
    """Length of the positional encoding, in frames."""
    mid_block: bool
    """Whether there is a motion module in the mid block."""
    image_group_norm: GroupNormMode = "per_frame"
    """Over what the GroupNorms of the resnets take their statistics."""


PRESETS: dict[str, Preset] = {
    "v1": Preset("sd15", 24, mid_block=False, image_group_norm="pooled"),
    "v2": Preset("sd15", 32, mid_block=True),
    "v3": Preset("sd15", 32, mid_block=False),
    "sdxl-beta": Preset("sdxl", 32, mid_block=False),
    "from-base": Preset(None, 32, mid_block=False),
}


def check_preset(preset: str, shape: UNetShape) -> None:
    """
    Raises:
        UserError: the preset is for base models of another shape.
    """
    base = PRESETS[preset].base
    if base is not None and BASE_SHAPES[base] != shape:
        raise UserError(
            f"Preset {preset} is for a base model of widths {BASE_SHAPES[base].widths}; this one has {shape.widths}.",
            "A motion module fits between the layers of one family of models.",
            "Use preset from-base, or another base model.",
        )


def infer_preset(widths: tuple[int, ...], mid_block: bool, positions: int | None) -> str | None:
    """The preset of a file without metadata, by its sizes; None if they are those of no release.

    v1 and v3 differ only in the number of positions. A file without positions is taken for v3.
    """
    if widths == BASE_SHAPES["sdxl"].widths:
        return "sdxl-beta"
    if widths != BASE_SHAPES["sd15"].widths:
        return None
    if mid_block:
        return "v2"
    return "v1" if positions == PRESETS["v1"].positions else "v3"
