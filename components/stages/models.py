"""What stages load: the base model that fits the cache, a motion module in it, a LoRA to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.base.model import BaseModel, load_base, vae_sha256
from components.lora import domain_adapter as adapters
from components.lora import lora
from components.lora.stack import LoraStack
from components.motion.module import insert_motion_module
from components.train.batch import BatchSource
from infra.errors import UserError

if TYPE_CHECKING:
    from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel


def load_pipeline(base: BaseModel, cache: BatchSource, domain_adapter: Path | None = None) -> StableDiffusionPipeline:
    """The base model on the CPU, with a domain adapter folded into it at scale 1.

    Raises:
        UserError: the cache was encoded by another VAE, or its clips have a size that the UNet cannot halve as often
            as it does.
    """
    pipeline = load_base(base)
    own = vae_sha256(pipeline.vae)
    if own != cache.vae_sha256:
        raise UserError(
            f"The cache was encoded by the VAE {cache.vae_sha256[:12]} and {base.path} has the VAE {own[:12]}.",
            "Latents of one VAE are noise to a model that was trained on another's.",
            "Build the cache again with this base model's VAE, or train on the base model it was built for.",
        )
    height, width = cache.latent_size
    halvings, factor = len(pipeline.unet.config.block_out_channels) - 1, pipeline.vae_scale_factor
    if height % 2**halvings or width % 2**halvings:
        raise UserError(
            f"The cache holds clips of {width * factor}x{height * factor} pixels.",
            f"The base model halves its latents {halvings} times, so both sides must be multiples of "
            f"{factor * 2**halvings}.",
            "Build the cache again with another --set cache.size.",
        )
    if domain_adapter is not None:
        LoraStack(pipeline.unet).add(adapters.KIND, adapters.load_domain_adapter(domain_adapter))
    return pipeline


def with_motion_module(
    pipeline: StableDiffusionPipeline, adapter: MotionAdapter, metadata: Mapping[str, Any], frames: int
) -> UNetMotionModel:
    """The video model, which takes the image UNet's place in the pipeline; `metadata` are the motion module's.

    Raises:
        UserError: clips of `frames` frames are longer than the motion module's longest window, or it was made for
            another base model.
    """
    longest = adapter.config.motion_max_seq_length
    if frames > longest:
        raise UserError(
            f"The training window has {frames} frames and the motion module {longest} positions.",
            "Frames past the last position cannot be told apart.",
            "Lower train.frames, or raise the motion module's max_frames.",
        )
    # The video model is a copy; the image UNet would be 3.2 GiB of SD 1.5 that nothing reads any more.
    pipeline.unet = unet = insert_motion_module(
        pipeline.unet, adapter, metadata["group_norm"], metadata["image_group_norm"]
    )
    return unet


def start_lora(trainable: Mapping[str, nn.Parameter], given: lora.LoraWeights, path: Path) -> None:
    """Copies the weights of a LoRA into the fresh parameters of another.

    Raises:
        UserError: their ranks or layers differ.
    """
    values = given.state
    wrong = [
        name
        for name in sorted({*trainable, *values})
        if name not in values or name not in trainable or values[name].shape != trainable[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} has rank {given.rank} or layers that differ from those to be trained, such as {wrong[0]}.",
            "Training can only start from weights of the same shape.",
            f"Set rank={given.rank}, or leave init_from out.",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(values[name])
