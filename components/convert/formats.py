"""Weight files between the original AnimateDiff format and diffusers', fresh ones, and what a file is.

Conversions rename tensors and keep their dtype and bytes; every file that is written is read whole first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from components.base.files import config_of
from components.files.inputs import weight_file
from components.files.kinds import KINDS, OURS, DType
from components.files.names import is_original, lora_to_original
from components.files.notes import metadata_for
from components.files.weight_files import read_header, write_weights
from components.lora import lora
from components.motion import files as motion_files
from components.motion.motion_module import MotionModuleConfig, fresh_motion_adapter, motion_notes
from components.motion.presets import BASES, PRESETS, GroupNormMode, PresetName, UNetShape
from infra.errors import UserError

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_original(source: Path, target: Path, dtype: DType | None = None) -> Path:
    """Writes a motion module, domain adapter or MotionLoRA in the original format, notes included; `dtype` converts the
    weights, none keeps the file's own.

    Raises:
        UserError: nothing that has an original format, or weights that are not whole.
    """
    file = weight_file(source)
    kind = read_header(file).kind
    if kind == motion_files.KIND:
        given = motion_files.read_motion(source if source.is_dir() else file)
        if given.notes["network"] == "temporal-convolution":
            raise UserError(
                f"{source} is a motion module of temporal convolutions, the paper's ablation.",
                "The original format has no names for them, and no other program could run them.",
                "Animate with the folder itself.",
            )
        adapter = motion_files.empty_adapter(given.settings, given.notes["network"])
        notes = given.notes | motion_files.shape_notes(adapter)
        motion_files.write_motion_original(target, converted(given.state, dtype), notes)
        return target
    if kind in lora.LAYERS:
        weights = lora.load(file, kind)
        write_weights(
            target,
            converted(lora_to_original(weights.state), dtype),
            metadata_for(weights.noted | {"stage": kind}, original=True),
        )
        return target
    raise UserError(
        f"{source} is {KINDS[kind]}.",
        "Motion modules, domain adapters and MotionLoRAs can be exported to the original format.",
        "Name one of those.",
    )


def import_original(
    source: Path,
    target: Path,
    preset: PresetName | None = None,
    group_norm: GroupNormMode | None = None,
    max_frames: int | None = None,
) -> Path:
    """Writes a file in the original format in diffusers': a motion module as a folder, a LoRA as a file.

    `preset` and `group_norm` say of a motion module what its file leaves open; `max_frames` gives it positions for
    another longest window.

    Raises:
        UserError: not in the original format, or not whole.
    """
    header = read_header(source)
    if header.kind not in OURS or not is_original(header.shapes):
        raise UserError(
            f"{source} is {KINDS[header.kind]}, and not in the original format.", "", "Name a file in that format."
        )
    if header.kind == motion_files.KIND:
        _check_free(target)
        given = motion_files.read_motion(source)
        if max_frames is not None:
            given = given.with_positions(max_frames)
        said: dict[str, str] = {}
        if preset is not None:
            said |= {"preset": preset, "image_group_norm": PRESETS[preset].image_group_norm}
        if group_norm is not None:
            said |= {"group_norm": group_norm}
        adapter = motion_files.empty_adapter(given.settings, given.notes["network"])
        notes = given.notes | motion_files.shape_notes(adapter) | said
        motion_files.write_motion_folder(target, adapter, given.state, notes)
    else:
        given_to_a_lora = {"--preset": preset, "--group-norm": group_norm, "--max-frames": max_frames}
        if vain := [name for name, value in given_to_a_lora.items() if value is not None]:
            raise UserError(
                f"{' and '.join(vain)} say something of a motion module, and {source} is {KINDS[header.kind]}.",
                "A LoRA has nothing of the kind.",
                "Leave them out.",
            )
        weights = lora.load(source, header.kind)
        write_weights(target, weights.state, metadata_for(weights.noted | {"stage": header.kind}, original=False))
    return target


def _check_free(folder: Path) -> None:
    """
    Raises:
        UserError: something else than a motion module is there.
    """
    taken = folder.exists() and not motion_files.is_motion_folder(folder)
    if taken and (folder.is_file() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is {'a file' if folder.is_file() else 'a folder with other files'}.",
            "A motion module is imported into a folder of its own.",
            "Name a new folder.",
        )


def export_fresh(
    config: MotionModuleConfig, base: str, target: Path, seed: int = 0, dtype: DType | None = None
) -> Path:
    """Writes an untrained motion module in the original format; no base weights are needed.

    `base` is `sd15`, `sdxl`, or a diffusers folder, of which the UNet's config is read.

    Raises:
        UserError: no such base, or one that the preset is not for.
    """
    adapter = fresh_motion_adapter(config, base_shape(base), seed)
    notes = motion_notes(config) | motion_files.shape_notes(adapter) | {"beta_schedule": "linear"}
    motion_files.write_motion_original(target, converted(adapter.state_dict(), dtype), notes)
    return target


def base_shape(base: str) -> UNetShape:
    """The UNet shape of `sd15`, `sdxl` or a diffusers folder.

    Raises:
        UserError: neither a name nor a folder with a UNet's config.
    """
    if base in BASES:
        return BASES[base]
    try:
        return UNetShape.of(config_of(Path(base), "unet"))
    except (UserError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{base} is no base model: {Path(base) / 'unet' / 'config.json'} cannot be read.",
            f"The motion module takes its widths from there. Known by name: {', '.join(BASES)}.",
            "Pass one of these names, or a diffusers folder.",
        ) from None


def converted(state: Mapping[str, Tensor], dtype: DType | None) -> dict[str, Tensor]:
    """The tensors as fp32, fp16 or bf16; none leaves them.

    Raises:
        UserError: a value does not fit into fp16.
    """
    if dtype is None:
        return dict(state)
    out = {name: tensor.to(TORCH_DTYPES[dtype]) for name, tensor in state.items()}
    if lost := [name for name, tensor in out.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"{lost[0]} has values that {dtype} cannot hold.", "They would become infinite.", "Use bf16.")
    return out
