"""The `MotionAdapter` config and the metadata of a motion module, inferred from the shapes of its tensors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.files.state_dict_keys import DIFFUSERS_PE
from components.motion.presets import PRESETS, Network, infer_preset
from infra.errors import UserError

TENSORS_OF_WIDTH = (".norm.weight", ".norm.bias", ".proj_in.bias", ".proj_out.bias")
"""Endings of the tensors whose length is the width of their level."""
POSITIONS_MAX, WIDTH_MAX = 10_000, 65_536


@dataclass(frozen=True)
class MotionShape:
    """What the shapes of a motion module's tensors say."""

    widths: tuple[int, ...]
    """Channels per level; 0 where the tensors do not say."""
    layers: tuple[int, ...]
    """Layers per block, per level."""
    positions: int | None
    """Length of the positional encoding, in frames; None without one."""
    mid_block: bool
    """Whether there is a motion module in the mid block."""
    network: Network

    @property
    def preset(self) -> str | None:
        """The preset that has these sizes."""
        return infer_preset(self.widths, self.mid_block, self.positions)


def infer_shape(shapes: Mapping[str, tuple[int, ...]]) -> MotionShape:
    """From the shapes of tensors by diffusers' keys. They need not be those of a complete motion module."""
    layers: dict[str, set[str]] = {}
    widths: dict[str, int] = {}
    for key, shape in shapes.items():
        if match := re.match(r"down_blocks\.(\d+)\.motion_modules\.([^.]*)", key):
            layers.setdefault(match[1], set()).add(match[2])
            if shape and key.endswith(TENSORS_OF_WIDTH):
                widths.setdefault(match[1], shape[0])
    levels = list(itertools.takewhile(layers.__contains__, map(str, itertools.count())))
    convolution = any(re.search(r"motion_modules\.\d+\.blocks\.\d+\.conv1\.", key) for key in shapes)
    lengths = (shape[1] for key, shape in shapes.items() if key.endswith(DIFFUSERS_PE) and len(shape) == 3)
    return MotionShape(
        widths=tuple(widths.get(level, 0) for level in levels),
        layers=tuple(len(layers[level]) for level in levels),
        positions=next(lengths, None),
        mid_block=any(key.startswith("mid_block.") for key in shapes),
        network="temporal-convolution" if convolution else "temporal-transformer",
    )


def with_default_metadata(shape: MotionShape, metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the fields that a file of another program does not have: the preset inferred from the shape,
    and the GroupNorm modes of the official code."""
    preset = metadata.get("preset", shape.preset)
    image = PRESETS[preset].image_group_norm if preset in PRESETS else "per_frame"
    defaults = {"group_norm": "per_frame", "image_group_norm": image}
    return {**defaults, **({"preset": preset} if preset else {}), **metadata}


def infer_adapter_config(
    path: Path, shape: MotionShape, metadata: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The config of the `MotionAdapter`. Sizes are those of the tensors; heads and GroupNorm groups are from `config`
    (the file's config.json, empty without one) or the metadata, else the official ones.

    Raises:
        UserError: no motion module has these sizes, or `config` has others.
    """
    widths, layers = list(shape.widths), list(shape.layers)
    preset = metadata.get("preset", shape.preset)
    default_positions = PRESETS[preset].positions if preset in PRESETS else 32
    positions = metadata.get("max_frames", default_positions) if shape.positions is None else shape.positions
    heads = config.get("motion_num_attention_heads", metadata.get("heads", "8"))
    groups = config.get("motion_norm_num_groups", metadata.get("norm_groups", 32))
    try:
        heads_list = [int(head) for head in (heads if isinstance(heads, (list, tuple)) else str(heads).split(","))]
        inferred = {
            "block_out_channels": widths,
            "motion_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
            "motion_num_attention_heads": heads_list[0] if len(set(heads_list)) == 1 else heads_list,
            "motion_norm_num_groups": int(groups),
            "motion_max_seq_length": int(positions),
            "use_motion_mid_block": shape.mid_block,
        }
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise invalid_shape_error(path, f"heads {heads!r}, groups {groups!r}, positions {positions!r}") from None
    _check_possible(path, inferred, heads_list)
    _check_equals_config(path, inferred, config)
    return inferred


def invalid_shape_error(path: Path, what: str) -> UserError:
    """The error for a file whose tensors, metadata and config.json are not those of one motion module."""
    return UserError(
        f"{path} does not have the shape of a motion module: {what}.",
        "The file is damaged, incomplete, or of another kind.",
        "Download or export it again.",
    )


def _check_possible(path: Path, config: Mapping[str, Any], heads: list[int]) -> None:
    """Checks the config against what `MotionAdapter` can build, and against limits on its memory."""
    widths = config["block_out_channels"]
    if not widths:
        raise invalid_shape_error(path, "it has no tensors of down_blocks.0")
    heads = heads * len(widths) if len(heads) == 1 else heads
    groups, positions = config["motion_norm_num_groups"], config["motion_max_seq_length"]
    possible = len(heads) == len(widths) and groups > 0 and 0 < positions <= POSITIONS_MAX and min(heads) > 0
    if not possible or any(
        width % (2 * head) or width % groups or not 0 < width <= WIDTH_MAX
        for width, head in zip(widths, heads, strict=True)
    ):
        raise invalid_shape_error(
            path, f"widths {widths}, heads {heads}, GroupNorm groups {groups}, {positions} positions"
        )


def _check_equals_config(path: Path, inferred: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks the inferred config against that of config.json, apart from the number of positions."""
    for name, value in inferred.items():
        in_config = config.get(name, value)
        if _per_level(in_config) != _per_level(value) and name != "motion_max_seq_length":
            raise invalid_shape_error(path, f"its config.json has {name} {in_config}, and its tensors have {value}")


def _per_level(value: Any) -> Any:
    """A list with one number per level; one number where all are equal."""
    entries = list(value) if isinstance(value, (tuple, list)) else [value]
    return entries[0] if entries and all(entry == entries[0] for entry in entries) else entries
