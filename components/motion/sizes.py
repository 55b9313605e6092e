"""What the shapes of a motion module's tensors say of it, and what a file that says no more is taken for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.files.names import DIFFUSERS_PE
from components.motion.presets import PRESETS, Network, guess_preset
from infra.errors import UserError

WIDTH_OF = (".norm.weight", ".norm.bias", ".proj_in.bias", ".proj_out.bias")
POSITIONS_MAX, WIDTH_MAX = 10_000, 65_536


@dataclass(frozen=True)
class MotionSizes:
    """By level `widths` in channels (0 where no tensor tells) and the number of `layers`; `positions` is the longest
    window in frames, None without positions; `mid_block` whether a motion module sits there."""

    widths: tuple[int, ...]
    layers: tuple[int, ...]
    positions: int | None
    mid_block: bool
    network: Network

    @property
    def preset(self) -> str | None:
        """The release that has these sizes."""
        return guess_preset(self.widths, self.mid_block, self.positions)


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> MotionSizes:
    """From shapes by diffusers' names, which need not be those of a whole motion module."""
    layers: dict[str, set[str]] = {}
    widths: dict[str, int] = {}
    for name, shape in shapes.items():
        if found := re.match(r"down_blocks\.(\d+)\.motion_modules\.([^.]*)", name):
            layers.setdefault(found[1], set()).add(found[2])
            if shape and name.endswith(WIDTH_OF):
                widths.setdefault(found[1], shape[0])
    levels = list(itertools.takewhile(layers.__contains__, map(str, itertools.count())))
    convolution = any(re.search(r"motion_modules\.\d+\.blocks\.\d+\.conv1\.", name) for name in shapes)
    lengths = (shape[1] for name, shape in shapes.items() if name.endswith(DIFFUSERS_PE) and len(shape) == 3)
    return MotionSizes(
        widths=tuple(widths.get(level, 0) for level in levels),
        layers=tuple(len(layers[level]) for level in levels),
        positions=next(lengths, None),
        mid_block=any(name.startswith("mid_block.") for name in shapes),
        network="temporal-convolution" if convolution else "temporal-transformer",
    )


def completed_notes(sizes: MotionSizes, notes: Mapping[str, str]) -> dict[str, str]:
    """With what another tool's file leaves unsaid: the preset by its sizes, the official norms."""
    preset = notes.get("preset", sizes.preset)
    image = PRESETS[preset].image_group_norm if preset in PRESETS else "per_frame"
    assumed = {"group_norm": "per_frame", "image_group_norm": image}
    return {**assumed, **({"preset": preset} if preset else {}), **notes}


def settings_for(path: Path, sizes: MotionSizes, notes: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, Any]:
    """`MotionAdapter` settings: sizes off the tensors' shapes; heads and groups from config or notes, else official.

    Raises:
        UserError: no motion module has these sizes, or the config gives others.
    """
    widths, layers = list(sizes.widths), list(sizes.layers)
    preset = notes.get("preset", sizes.preset)
    usual = PRESETS[preset].positions if preset in PRESETS else 32
    positions = notes.get("max_frames", usual) if sizes.positions is None else sizes.positions
    heads = config.get("motion_num_attention_heads", notes.get("heads", "8"))
    groups = config.get("motion_norm_num_groups", notes.get("norm_groups", 32))
    try:
        each = (
            [int(head) for head in heads]
            if isinstance(heads, (list, tuple))
            else [int(head) for head in str(heads).split(",")]
        )
        found = {
            "block_out_channels": widths,
            "motion_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
            "motion_num_attention_heads": each[0] if len(set(each)) == 1 else each,
            "motion_norm_num_groups": int(groups),
            "motion_max_seq_length": int(positions),
            "use_motion_mid_block": sizes.mid_block,
        }
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise odd_shape(path, f"heads {heads!r}, groups {groups!r}, positions {positions!r}") from None
    _check_settings(path, found, each)
    for name, value in found.items():
        said = config.get(name, value)
        if _alike(said) != _alike(value) and name != "motion_max_seq_length":
            raise odd_shape(path, f"its config.json gives {name} as {said}, and its tensors have {value}")
    return found


def odd_shape(path: Path, what: str) -> UserError:
    """The error for a file whose tensors, notes and config cannot be of one motion module."""
    return UserError(
        f"{path} has a shape that no motion module has: {what}.",
        "The file is damaged, incomplete, or of another kind.",
        "Make or download it again.",
    )


def _check_settings(path: Path, found: Mapping[str, Any], heads: list[int]) -> None:
    widths = found["block_out_channels"]
    if not widths:
        raise odd_shape(path, "it has no tensors of down_blocks.0")
    heads = heads * len(widths) if len(heads) == 1 else heads
    groups, positions = found["motion_norm_num_groups"], found["motion_max_seq_length"]
    possible = len(heads) == len(widths) and groups > 0 and 0 < positions <= POSITIONS_MAX and min(heads) > 0
    if not possible or any(
        width % (2 * head) or width % groups or not 0 < width <= WIDTH_MAX
        for width, head in zip(widths, heads, strict=True)
    ):
        raise odd_shape(path, f"widths {widths}, heads {heads}, GroupNorm groups {groups}, {positions} positions")


def _alike(value: Any) -> Any:
    """One number for each level, or one for all where they are equal."""
    entries = list(value) if isinstance(value, (tuple, list)) else [value]
    return entries[0] if entries and all(entry == entries[0] for entry in entries) else entries
