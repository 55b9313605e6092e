"""Keys of state dicts: the original AnimateDiff format (official code, ComfyUI, A1111) and diffusers', both ways.

| | original | diffusers |
|---|---|---|
| motion module | `motion_modules.j.temporal_transformer.` | `motion_modules.j.` |
| | `attention_blocks.{0,1}.to_q` | `attn{1,2}.to_q` |
| | `norms.{0,1}`, `ff_norm` | `norm1`, `norm2`, `norm3` |
| | `attention_blocks.{0,1}.pos_encoder.pe` | one `pos_embed.pe` per block |
| MotionLoRA | `attention_blocks.0.processor.to_out_lora.down.weight` | `unet.….attn1.to_out.0.lora_A.weight` |
| domain adapter | `attn1.processor.to_out_lora.up.weight` | `unet.….attn1.to_out.0.lora_B.weight` |

Only keys change. Tensors keep their dtype and bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ORIGINAL_PE = ".pos_encoder.pe"
DIFFUSERS_PE = ".pos_embed.pe"
UNET_PREFIX = "unet."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
IMAGE_UNET_KEY = r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding)\."
DUPLICATE_SUFFIX = " (a second time, under another name)"
"""Marks a tensor that a file holds under two spellings of its key. No model has such a key, so loaders refuse it."""


def is_original_format(state: Mapping[str, object]) -> bool:
    """Whether the keys of a motion module, domain adapter or MotionLoRA are those of the original format."""
    return any(".temporal_transformer." in key or ".processor.to_" in key for key in state)


def motion_module_to_original(state: Mapping[str, T]) -> dict[str, T]:
    """A motion module with original keys. Both attention blocks get the positional encoding, by which other programs
    tell the versions apart."""
    converted: dict[str, T] = {}
    for key, tensor in state.items():
        if key.endswith(DIFFUSERS_PE):
            for attention in ("attn1", "attn2"):
                converted[motion_key_to_original(key.replace(DIFFUSERS_PE, f".{attention}{ORIGINAL_PE}"))] = tensor
        else:
            converted[motion_key_to_original(key)] = tensor
    return converted


def motion_module_to_diffusers(state: Mapping[str, T]) -> dict[str, T]:
    """A motion module with diffusers' keys. The positional encodings of a block's two attentions become one.

    The official trainer saves the whole UNet; keys of the image model are then left out. Any other key is kept, and the
    caller refuses it.
    """
    whole_unet = "conv_in.weight" in state
    converted: dict[str, T] = {}
    seen: set[str] = set()
    for key, tensor in state.items():
        if whole_unet and "motion_modules." not in key and re.match(IMAGE_UNET_KEY, key):
            continue
        diffusers_key = motion_key_to_diffusers(key)
        target = re.sub(rf"\.attn[12]{re.escape(ORIGINAL_PE)}$", DIFFUSERS_PE, diffusers_key)
        # Only the two positional encodings of a block may end up under one key.
        duplicate = diffusers_key in seen or target in seen or (target in converted and target == diffusers_key)
        seen.add(diffusers_key)
        converted[target + DUPLICATE_SUFFIX if duplicate else target] = tensor
    return converted


def motion_key_to_original(key: str) -> str:
    """A diffusers key of a motion module in the original format. Not for `pos_embed.pe`, which becomes two keys."""
    key = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", key, count=1)
    key = re.sub(r"\.attn([12])\.", lambda match: f".attention_blocks.{int(match[1]) - 1}.", key)
    key = key.replace(".norm3.", ".ff_norm.")
    return re.sub(r"(transformer_blocks\.\d+)\.norm([12])\.", lambda m: f"{m[1]}.norms.{int(m[2]) - 1}.", key)


def motion_key_to_diffusers(key: str) -> str:
    """The inverse of `motion_key_to_original`."""
    key = key.replace(".temporal_transformer.", ".", 1)
    key = re.sub(r"\.attention_blocks\.([01])\.", lambda match: f".attn{int(match[1]) + 1}.", key)
    key = key.replace(".ff_norm.", ".norm3.")
    return re.sub(r"\.norms\.([01])\.", lambda match: f".norm{int(match[1]) + 1}.", key)


def lora_to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A domain adapter or MotionLoRA with original keys, from diffusers' keys."""
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, matrix = re.fullmatch(r"unet\.(.*)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
        attention, projection = re.fullmatch(r"(.*\.attn[12])\.(to_q|to_k|to_v|to_out)(?:\.0)?", layer).groups()  # type: ignore[union-attr]
        if "motion_modules." in attention:
            attention = motion_key_to_original(attention + ".").removesuffix(".")
        converted[f"{attention}.processor.{projection}_lora.{'down' if matrix == 'A' else 'up'}.weight"] = tensor
    return converted


def lora_to_a1111(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A domain adapter or MotionLoRA with the keys of A1111's LoRA loader, from diffusers' keys.

    Image layers have kohya's names (`lora_unet_...`); the layers of a motion module are named as sd-webui-animatediff
    registers them (`AnimateDiffMM._set_layer_mapping`): the module's original name with `_` for `.`, no prefix.
    """
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, matrix = re.fullmatch(r"unet\.(.*)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
        attention, projection = re.fullmatch(r"(.*\.attn[12])\.(.*)", layer).groups()  # type: ignore[union-attr]
        if "motion_modules." in attention:
            name = motion_key_to_original(attention + ".") + projection
        else:
            name = f"lora_unet_{attention}.{projection}"
        name = name.replace(".", "_")
        converted[f"{name}.lora_{'down' if matrix == 'A' else 'up'}.weight"] = tensor
        if matrix == "A":
            converted[f"{name}.alpha"] = torch.tensor(float(tensor.shape[0]), dtype=tensor.dtype)
    return converted


def lora_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A domain adapter or MotionLoRA with diffusers' keys (`unet.<layer>.lora_A.weight`).

    Known are the keys of the original format, of diffusers (with and without `unet.`) and of peft. Any other key is
    kept, and the caller refuses it.
    """
    converted: dict[str, Tensor] = {}
    for full_key, tensor in state.items():
        key, target = full_key.removeprefix("base_model.model.").removeprefix(UNET_PREFIX), full_key
        if parts := re.fullmatch(r"(.*?)(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight", key):
            layer = motion_key_to_diffusers(parts[1] + ".") + ("to_out.0" if parts[2] == "to_out" else parts[2])
            target = UNET_PREFIX + layer + (DOWN if parts[3] == "down" else UP)
        elif parts := re.fullmatch(r"(.*)\.(lora_A|lora\.down|lora_B|lora\.up)(?:\.default)?\.weight", key):
            target = UNET_PREFIX + parts[1] + (DOWN if parts[2] in ("lora_A", "lora.down") else UP)
        converted[target + DUPLICATE_SUFFIX if target in converted else target] = tensor
    return converted
