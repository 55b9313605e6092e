"""The released motion modules by name, and the shape that a motion module takes from its base model's UNet."""

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
    """What decides a motion module's size: channels by level, layers a level, GroupNorm groups."""

    widths: tuple[int, ...]
    layers: int | tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> UNetShape:
        """From the config of a `UNet2DConditionModel`."""
        layers = config["layers_per_block"]
        return cls(
            tuple(int(width) for width in config["block_out_channels"]),
            layers if isinstance(layers, int) else tuple(layers),
            int(config["norm_num_groups"]),
        )

    @property
    def heads(self) -> int | tuple[int, ...]:
        """8 heads as the official module; 4 where a head would be narrower than 8 channels."""
        heads = tuple(8 if width // 8 >= 8 else 4 for width in self.widths)
        return heads[0] if len(set(heads)) == 1 else heads


BASES = {"sd15": UNetShape((320, 640, 1280, 1280), 2, 32), "sdxl": UNetShape((320, 640, 1280), 2, 32)}


@dataclass(frozen=True)
class Preset:
    """What one release fixes: `base` names its base model's shape (None: any), `positions` the longest window in
    frames, `mid_block` whether a motion module sits there, `image_group_norm` how resnets normalise over frames."""

    base: str | None
    positions: int
    mid_block: bool
    image_group_norm: GroupNormMode = "per_frame"


PRESETS: dict[str, Preset] = {
    "v1": Preset("sd15", 24, mid_block=False, image_group_norm="pooled"),
    "v2": Preset("sd15", 32, mid_block=True),
    "v3": Preset("sd15", 32, mid_block=False),
    "sdxl-beta": Preset("sdxl", 32, mid_block=False),
    "from-base": Preset(None, 32, mid_block=False),
}


def check_base(preset: str, shape: UNetShape) -> None:
    """
    Raises:
        UserError: the preset is for a base model of other widths.
    """
    base = PRESETS[preset].base
    if base is not None and BASES[base] != shape:
        raise UserError(
            f"Preset {preset} is for a base model of widths {BASES[base].widths}; this one has {shape.widths}.",
            "A motion module fits between the layers of one family of models.",
            "Use preset from-base, or another base model.",
        )


def guess_preset(widths: tuple[int, ...], mid_block: bool, positions: int | None) -> str | None:
    """The release that a file without notes is, by its shape; None where it is of no release.

    v1 and v3 differ in nothing but the number of positions, and a file without positions is taken for v3.
    """
    if widths == BASES["sdxl"].widths:
        return "sdxl-beta"
    if widths != BASES["sd15"].widths:
        return None
    if mid_block:
        return "v2"
    return "v1" if positions == PRESETS["v1"].positions else "v3"
