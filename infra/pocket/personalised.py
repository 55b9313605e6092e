"""Personalised variants of the pocket base model, in the two forms in which the community shares them.

*ink*: a full fine-tune, one `.safetensors` in the key layout of the original Stable Diffusion repository.
*neon*: a LoRA in kohya's format, with alpha half the rank so that a reader which ignores alpha shows it.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infra.pocket.image_model import encode, fit, image_loss, stills

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

LORA_RANK, LORA_ALPHA = 16, 8
LORA_TARGETS = r".*attentions\..*(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)"


def train_ink(base: StableDiffusionPipeline, steps: int, seed: int) -> StableDiffusionPipeline:
    """Fine-tunes a copy of the UNet on ink drawings of the world."""
    personal = copy.copy(base)
    personal.unet = copy.deepcopy(base.unet)
    pictures, captions = stills(6000, seed, style="ink")
    loss = image_loss(personal, encode(base.vae, pictures), captions, seed)
    base.text_encoder.requires_grad_(False)
    fit("pocket ink", [personal.unet], loss, steps, learning_rate=5e-4, ema=0.99)
    return personal


def train_neon(base: StableDiffusionPipeline, steps: int, seed: int) -> dict[str, Tensor]:
    """Trains a LoRA on neon pictures of the world; returns its tensors under kohya's names."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    personal = copy.copy(base)
    personal.unet = copy.deepcopy(base.unet).requires_grad_(False)
    personal.unet.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_TARGETS))
    pictures, captions = stills(6000, seed, style="neon")
    loss = image_loss(personal, encode(base.vae, pictures), captions, seed)
    base.text_encoder.requires_grad_(False)
    fit("pocket neon", [personal.unet], loss, steps, learning_rate=2e-3, ema=0.99)
    return to_kohya(get_peft_model_state_dict(personal.unet))


def to_kohya(peft_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`mid_block.….to_q.lora_A.weight` to `lora_unet_mid_block_…_to_q.lora_down.weight`, with an alpha per module."""
    out: dict[str, Tensor] = {}
    for name, value in peft_state.items():
        module, side = re.fullmatch(r"(.*)\.lora_(A|B)\.weight", name).groups()  # type: ignore[union-attr]
        key = "lora_unet_" + module.replace(".", "_")
        out[f"{key}.lora_{'down' if side == 'A' else 'up'}.weight"] = value.detach().half().contiguous()
        out[f"{key}.alpha"] = torch.tensor(float(LORA_ALPHA), dtype=torch.float16)
    return out


def save_single_file(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Writes UNet, VAE and text encoder as one fp16 file in the original Stable Diffusion 1.x key layout."""
    from safetensors.torch import save_file

    layers = pipeline.unet.config.layers_per_block
    levels = len(pipeline.vae.config.block_out_channels)
    tensors = {
        "model.diffusion_model." + _unet_key(name, layers, pipeline.unet): value
        for name, value in pipeline.unet.state_dict().items()
    }
    for name, value in pipeline.vae.state_dict().items():
        key = "first_stage_model." + _vae_key(name, levels)
        square = ".attn_1." in key and value.ndim == 2  # the original VAE attends through 1×1 convolutions
        tensors[key] = value[:, :, None, None] if square else value
    for name, value in pipeline.text_encoder.state_dict().items():
        tensors["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = value
    half = {name: value.detach().half().contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path, metadata={"format": "pt", "modelspec.title": path.stem})


def _unet_key(name: str, layers: int, unet: torch.nn.Module) -> str:
    per_level = layers + 1
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        side, level, part, index, rest = match.groups()
        first = int(level) * per_level
        if part == "downsamplers":
            return f"input_blocks.{first + per_level}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            attends = hasattr(unet.get_submodule(f"up_blocks.{level}"), "attentions")
            return f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}"
        block = f"input_blocks.{first + int(index) + 1}" if side == "down" else f"output_blocks.{first + int(index)}"
        return f"{block}.0.{_resnet_key(rest)}" if part == "resnets" else f"{block}.1.{rest}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        part, index, rest = match.groups()
        return f"middle_block.{2 * int(index)}.{_resnet_key(rest)}" if part == "resnets" else f"middle_block.1.{rest}"
    heads = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    heads |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    module, _, leaf = name.rpartition(".")
    return f"{heads[module]}.{leaf}"


def _resnet_key(rest: str) -> str:
    names = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"}
    names |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    module, _, leaf = rest.rpartition(".")
    return f"{names[module]}.{leaf}"


def _vae_key(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    name = name.replace("conv_shortcut", "nin_shortcut")
    if ".attn_1." in name:
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return name
