"""Names of tensors: the original AnimateDiff format (official code, ComfyUI, A1111) and diffusers', both ways.

| | original | diffusers |
|---|---|---|
| motion module | `motion_modules.j.temporal_transformer.` | `motion_modules.j.` |
| | `attention_blocks.{0,1}.to_q` | `attn{1,2}.to_q` |
| | `norms.{0,1}`, `ff_norm` | `norm1`, `norm2`, `norm3` |
| | `attention_blocks.{0,1}.pos_encoder.pe` | one `pos_embed.pe` a block |
| MotionLoRA | `attention_blocks.0.processor.to_out_lora.down.weight` | `unet.….attn1.to_out.0.lora_A.weight` |
| domain adapter | `attn1.processor.to_out_lora.up.weight` | `unet.….attn1.to_out.0.lora_B.weight` |

Tensors keep their dtype and their bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")

PE = ".pos_encoder.pe"
DIFFUSERS_PE = ".pos_embed.pe"
PREFIX = "unet."
TWICE = " (a second time, under another name)"  # a name that no model has, so that every reader refuses it
IMAGE_MODEL = r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding)\."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def is_original(names: Mapping[str, object]) -> bool:
    """Whether a motion module, domain adapter or MotionLoRA has the original format's names."""
    return any(".temporal_transformer." in name or ".processor.to_" in name for name in names)


def motion_name_to_original(name: str) -> str:
    """A motion module's tensor name in the original format; not for `pos_embed.pe`, which becomes two."""
    name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name, count=1)
    name = re.sub(r"\.attn([12])\.", lambda match: f".attention_blocks.{int(match[1]) - 1}.", name)
    name = name.replace(".norm3.", ".ff_norm.")
    return re.sub(r"(transformer_blocks\.\d+)\.norm([12])\.", lambda m: f"{m[1]}.norms.{int(m[2]) - 1}.", name)


def motion_name_from_original(name: str) -> str:
    """The inverse of `motion_name_to_original`."""
    name = name.replace(".temporal_transformer.", ".", 1)
    name = re.sub(r"\.attention_blocks\.([01])\.", lambda match: f".attn{int(match[1]) + 1}.", name)
    name = name.replace(".ff_norm.", ".norm3.")
    return re.sub(r"\.norms\.([01])\.", lambda match: f".norm{int(match[1]) + 1}.", name)


def motion_to_original(state: Mapping[str, T]) -> dict[str, T]:
    """A motion module in the original format; both attention blocks carry positions, by which readers tell versions."""
    out: dict[str, T] = {}
    for name, tensor in state.items():
        if name.endswith(DIFFUSERS_PE):
            for attention in ("attn1", "attn2"):
                out[motion_name_to_original(name.replace(DIFFUSERS_PE, f".{attention}{PE}"))] = tensor
        else:
            out[motion_name_to_original(name)] = tensor
    return out


def motion_from_original(state: Mapping[str, T]) -> dict[str, T]:
    """A motion module in diffusers' names; the positions of a block's two attentions become one.

    The official trainer saves the whole UNet; the image model's tensors, named as diffusers names them, are then left
    out. Anything else is kept, for the caller to refuse.
    """
    whole_unet = "conv_in.weight" in state
    out: dict[str, T] = {}
    spelled: set[str] = set()
    for name, tensor in state.items():
        if whole_unet and "motion_modules." not in name and re.match(IMAGE_MODEL, name):
            continue
        plain = motion_name_from_original(name)
        renamed = re.sub(rf"\.attn[12]{re.escape(PE)}$", DIFFUSERS_PE, plain)
        # The positions of two attentions may share a name; anything else that does is there twice.
        twice = plain in spelled or renamed in spelled or (renamed in out and renamed == plain)
        spelled.add(plain)
        out[renamed + TWICE if twice else renamed] = tensor
    return out


def lora_to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A domain adapter or MotionLoRA in the original format."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, side = re.fullmatch(r"unet\.(.*)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        attention, projection = re.fullmatch(r"(.*\.attn[12])\.(to_q|to_k|to_v|to_out)(?:\.0)?", layer).groups()  # type: ignore[union-attr]
        if "motion_modules." in attention:
            attention = motion_name_to_original(attention + ".").removesuffix(".")
        out[f"{attention}.processor.{projection}_lora.{'down' if side == 'A' else 'up'}.weight"] = tensor
    return out


def lora_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A domain adapter or MotionLoRA in diffusers' names (`unet.<layer>.lora_A.weight`), from any name it goes by:
    the original format's, that with diffusers' prefix, diffusers' own with or without it, and peft's. A name that fits
    none is kept, for the caller to refuse."""
    out: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name, renamed = full.removeprefix("base_model.model.").removeprefix(PREFIX), full
        if parts := re.fullmatch(r"(.*?)(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight", name):
            layer = motion_name_from_original(parts[1] + ".") + ("to_out.0" if parts[2] == "to_out" else parts[2])
            renamed = PREFIX + layer + (DOWN if parts[3] == "down" else UP)
        elif parts := re.fullmatch(r"(.*)\.(lora_A|lora\.down|lora_B|lora\.up)(?:\.default)?\.weight", name):
            renamed = PREFIX + parts[1] + (DOWN if parts[2] in ("lora_A", "lora.down") else UP)
        out[renamed + TWICE if renamed in out else renamed] = tensor
    return out
