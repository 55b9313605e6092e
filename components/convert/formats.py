"""Conversion of weight files between the original AnimateDiff format and diffusers', and export of untrained modules.

A conversion renames keys. Tensors keep their dtype and bytes unless another dtype is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from components.base.checks import read_config
from components.files.kinds import ANIMATEDIFF_KINDS, KINDS, DType, Program
from components.files.metadata import to_safetensors_metadata
from components.files.paths import DIFFUSERS_LORA_NAME, find_weight_file
from components.files.state_dict_keys import is_original_format, lora_to_a1111, lora_to_original
from components.files.weights import read_header, write_weights
from components.lora import lora
from components.motion import files as motion_files
from components.motion.module import MotionModuleConfig, config_metadata, fresh_motion_adapter
from components.motion.presets import BASE_SHAPES, PRESETS, GroupNormMode, PresetName, UNetShape
from infra.errors import UserError

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_weights(source: Path, target: Path, dtype: DType | None = None, program: Program = "comfyui") -> Path:
    """Writes a motion module, domain adapter or MotionLoRA as a program reads it, with its metadata.

    `comfyui` (AnimateDiff-Evolved): the original format. `a1111` (sd-webui-animatediff): the same for a motion module,
    and for LoRAs the names of its LoRA loader. `official`: the original format by `torch.save`. `diffusers`: a folder.
    `dtype` converts the tensors; none keeps the file's.

    Raises:
        UserError: a kind that has no such format, weights that are incomplete, or a target that the program would not
            read.
    """
    _check_name(target, program)
    file = find_weight_file(source)
    kind = read_header(file).kind
    if kind == motion_files.KIND:
        _export_motion_module(source if source.is_dir() else file, target, dtype, program)
    elif kind in lora.TARGET_MODULES:
        weights = lora.load(file, kind)
        original = program in ("comfyui", "official")
        metadata = to_safetensors_metadata(weights.metadata_with_rank | {"stage": kind}, original=original)
        renamed = lora_to_original(weights.state) if original else dict(weights.state)
        renamed = lora_to_a1111(weights.state) if program == "a1111" else renamed
        path = target / DIFFUSERS_LORA_NAME if program == "diffusers" else target
        write_weights(path, to_dtype(renamed, dtype), metadata)
    else:
        raise UserError(
            f"{source} is {KINDS[kind]}.",
            "Only motion modules, domain adapters and MotionLoRAs can be exported.",
            "Pass one of those.",
        )
    return target


def _check_name(target: Path, program: Program) -> None:
    """
    Raises:
        UserError: the program reads files with another ending, or a folder.
    """
    suffix = target.suffix.lower()
    if program == "official" and suffix not in (".ckpt", ".pt", ".pth"):
        raise UserError(
            f"{target} does not end in .ckpt.",
            "The official code reads motion modules and their LoRAs with torch.load.",
            "Name a .ckpt file.",
        )
    if program == "a1111" and suffix != ".safetensors":
        raise UserError(f"{target} does not end in .safetensors.", "", "Name a .safetensors file.")
    if program == "comfyui" and suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise UserError(f"{target} ends in neither .safetensors nor .ckpt.", "", "Name a .safetensors file.")
    if program == "diffusers" and suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
        raise UserError(f"{target} is the name of a file.", "diffusers reads a folder.", "Name a folder.")


def import_original(
    source: Path,
    target: Path,
    preset: PresetName | None = None,
    group_norm: GroupNormMode | None = None,
    max_frames: int | None = None,
) -> Path:
    """Writes a file in the original format in diffusers' format: a motion module as a folder, a LoRA as a file.

    For a motion module, `preset` and `group_norm` set what cannot be inferred from its file, and `max_frames` gives it
    positional encodings of another length.

    Raises:
        UserError: not in the original format, or incomplete.
    """
    header = read_header(source)
    kind = header.kind
    if kind not in ANIMATEDIFF_KINDS or not is_original_format(header.shapes):
        raise UserError(
            f"{source} is {KINDS[kind]}, and not in the original format.", "", "Pass a file in the original format."
        )
    if kind == motion_files.KIND:
        _import_motion_module(source, target, preset, group_norm, max_frames)
        return target
    options = {"--preset": preset, "--group-norm": group_norm, "--max-frames": max_frames}
    if unused := [name for name, value in options.items() if value is not None]:
        raise UserError(
            f"{' and '.join(unused)} can be set for a motion module only, and {source} is {KINDS[kind]}.",
            "They have no meaning for a LoRA.",
            "Leave them out.",
        )
    weights = lora.load(source, kind)
    metadata = to_safetensors_metadata(weights.metadata_with_rank | {"stage": kind}, original=False)
    write_weights(target, weights.state, metadata)
    return target


def export_fresh(
    config: MotionModuleConfig, base: str, target: Path, seed: int = 0, dtype: DType | None = None
) -> Path:
    """Writes an untrained motion module in the original format. No base weights are needed.

    `base` is `sd15`, `sdxl`, or a diffusers folder, of which only the UNet's config is read.

    Raises:
        UserError: no such base, or the preset does not fit it.
    """
    adapter = fresh_motion_adapter(config, base_shape(base), seed)
    metadata = config_metadata(config) | motion_files.shape_metadata(adapter) | {"beta_schedule": "linear"}
    motion_files.write_original_motion_module(target, to_dtype(adapter.state_dict(), dtype), metadata)
    return target


def base_shape(base: str) -> UNetShape:
    """The UNet shape of `sd15`, `sdxl` or a diffusers folder.

    Raises:
        UserError: neither one of these names nor a folder with the config of a UNet.
    """
    if base in BASE_SHAPES:
        return BASE_SHAPES[base]
    try:
        return UNetShape.from_config(read_config(Path(base), "unet"))
    except (UserError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{base} is not a base model: {Path(base) / 'unet' / 'config.json'} cannot be read.",
            f"The motion module takes its sizes from that file. Known names: {', '.join(BASE_SHAPES)}.",
            "Pass one of these names, or a diffusers folder.",
        ) from None


def to_dtype(state: Mapping[str, Tensor], dtype: DType | None) -> dict[str, Tensor]:
    """The tensors converted to this dtype; none leaves them as they are.

    Raises:
        UserError: a value is too large for fp16.
    """
    if dtype is None:
        return dict(state)
    converted = {name: tensor.to(TORCH_DTYPES[dtype]) for name, tensor in state.items()}
    if overflowed := [name for name, tensor in converted.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"{overflowed[0]} has values that {dtype} cannot hold.", "They would become infinite.", "Use bf16."
        )
    return converted


def _export_motion_module(source: Path, target: Path, dtype: DType | None, program: Program) -> None:
    weights = motion_files.read_motion_module(source)
    if program == "diffusers":
        _check_target(target)
        _write_folder(target, weights, weights.metadata, dtype)
        return
    if weights.metadata["network"] == "temporal-convolution":
        raise UserError(
            f"{source} is a motion module of temporal convolutions, the paper's ablation.",
            "The original format has no keys for them, and no other program could run them.",
            "Animate with the folder itself.",
        )
    adapter = motion_files.meta_adapter(weights.config, weights.metadata["network"])
    metadata = weights.metadata | motion_files.shape_metadata(adapter)
    motion_files.write_original_motion_module(target, to_dtype(weights.state, dtype), metadata)


def _import_motion_module(
    source: Path, target: Path, preset: PresetName | None, group_norm: GroupNormMode | None, max_frames: int | None
) -> None:
    _check_target(target)
    weights = motion_files.read_motion_module(source)
    if max_frames is not None:
        weights = weights.with_positions(max_frames)
    changes: dict[str, str] = {}
    if preset is not None:
        changes |= {"preset": preset, "image_group_norm": PRESETS[preset].image_group_norm}
    if group_norm is not None:
        changes |= {"group_norm": group_norm}
    _write_folder(target, weights, weights.metadata | changes)


def _write_folder(
    target: Path,
    weights: motion_files.MotionWeights,
    metadata: Mapping[str, str],
    dtype: DType | None = None,
) -> None:
    """A motion module as diffusers' MotionAdapter folder."""
    adapter = motion_files.meta_adapter(weights.config, weights.metadata["network"])
    fields = {**metadata, **motion_files.shape_metadata(adapter)}
    motion_files.write_motion_adapter_folder(target, adapter, to_dtype(weights.state, dtype), fields)


def _check_target(folder: Path) -> None:
    """
    Raises:
        UserError: a file, or a folder with files that are not a motion module.
    """
    exists = folder.exists() and not motion_files.is_motion_adapter_folder(folder)
    if exists and (folder.is_file() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is {'a file' if folder.is_file() else 'a folder with other files'}.",
            "A motion module is imported into a folder of its own.",
            "Choose a new folder.",
        )
