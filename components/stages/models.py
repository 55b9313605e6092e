"""What a stage trains: the base model with its inserts, all frozen but the stage's own parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.base.caption_encoder import CaptionEncoder
from components.base.model import BaseModel, load_base, prediction_type_of, vae_sha256
from components.diffusion.objective import Predict, image_predictor
from components.lora import domain_adapter as adapters
from components.lora import lora
from components.lora.stack import LoraStack
from components.motion.module import insert_motion_module
from components.train.batch import BatchSource
from components.train.config import TrainConfig
from components.train.ranks import place_of
from components.train.report.samples import drawer
from components.train.step import Task
from infra.errors import UserError

if TYPE_CHECKING:
    from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel


def load_for(base: BaseModel, cache: BatchSource, domain_adapter: Path | None = None) -> StableDiffusionPipeline:
    """The base model, on the CPU, after checking that the cache's latents are those of its VAE; a domain adapter is
    folded into it at scale 1.

    Raises:
        UserError: another VAE's, or a size that the UNet cannot halve as often as it does.
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


def video_unet(
    pipeline: StableDiffusionPipeline, adapter: MotionAdapter, notes: Mapping[str, Any], train_config: TrainConfig
) -> UNetMotionModel:
    longest = adapter.config.motion_max_seq_length
    if train_config.frames > longest:
        raise UserError(
            f"The training window has {train_config.frames} frames and the motion module {longest} positions.",
            "Frames past the last position cannot be told apart.",
            "Lower train.frames, or raise the motion module's max_frames.",
        )
    # The video model is a copy; the image UNet would be 3.2 GiB of SD 1.5 that nothing reads any more.
    pipeline.unet = unet = insert_motion_module(pipeline.unet, adapter, notes["group_norm"], notes["image_group_norm"])
    return unet


def motion_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Freezes all but the motion module; returns its parameters by name."""
    unet.requires_grad_(False)
    found = {name: parameter for name, parameter in unet.named_parameters() if ".motion_modules." in name}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def task_of(
    title: str,
    pipeline: StableDiffusionPipeline,
    unet: nn.Module,
    predictor: Callable[[nn.Module], Predict],
    trainable: dict[str, nn.Parameter],
    cache: BatchSource,
    config: TrainConfig,
) -> Task:
    """A clip is one frame where the model is the image model."""
    prediction = prediction_type_of(pipeline)
    return Task(
        title=title,
        unet=unet,
        predictor=predictor,
        trainable=trainable,
        text=CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, place_of(config.device).device),
        latent_scale=pipeline.vae.config.scaling_factor,
        frames=1 if predictor is image_predictor else config.frames,
        latent_size=cache.latent_size,
        prediction=prediction,
        draw=drawer(pipeline, unet, config.beta_schedule, prediction),
    )


def start_lora(trainable: Mapping[str, nn.Parameter], given: lora.LoraWeights, path: Path) -> None:
    """Copies the weights to start from into the fresh parameters."""
    values = given.state
    wrong = [
        name
        for name in sorted({*trainable, *values})
        if name not in values or name not in trainable or values[name].shape != trainable[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} has rank {given.rank} or layers that differ from what is to be trained, such as {wrong[0]}.",
            "Training can only start from weights of the same shape.",
            f"Set rank={given.rank}, or leave init_from out.",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(values[name])
