"""Models and clips of the bench, and what of the trainer's ways a case leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module
from components.motion.presets import PresetName
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.stage import Stage
from components.train.activation_checkpointing import Checkpointing
from components.train.batch import ClipBatch
from components.train.config import TrainConfig
from components.train.step import Task
from infra.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline

STAGES = ("motion-module", "motion-lora", "domain-adapter")
WARM, CLIPS = 4, 32
TRICKS = ("cached latents", "cached text", "kept memory", "channels last", "bf16 frozen weights", "no waiting")
COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("square", "circle", "cross", "triangle")


@dataclass(frozen=True)
class Case:
    """One line of the table. `model`: `pocket`, or `sd15`, Stable Diffusion 1.5's size with random weights."""

    model: str
    stage: str
    clips: int
    """A step."""
    frames: int
    size: int
    """Pixels."""
    checkpointing: Checkpointing = "none"
    compile: bool = False
    undo: str = ""
    """One of `TRICKS`, left out of ours."""


class ClipsInMemory:
    """Random clips and captions of the pocket world's kind."""

    vae_sha256 = ""

    def __init__(self, case: Case, factor: int) -> None:
        self.latent_size = (case.size // factor, case.size // factor)
        shape = (CLIPS, 4, case.frames, *self.latent_size)
        self._latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.captions = [
            f"a {COLOURS[i % 4]} {SHAPES[i // 4 % 4]} moving {'left' if i < CLIPS // 2 else 'right'}"
            for i in range(CLIPS)
        ]

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        step = start_step
        while True:
            index = [(step * batch_size + i) % CLIPS for i in range(batch_size)]
            captions = [self.captions[i] for i in index]
            yield ClipBatch(self._latents[index, :, :frames], captions, [str(i) for i in index])
            step += 1

    def held_out(self, count: int, frames: int) -> ClipBatch:
        raise NotImplementedError("the bench holds nothing out")


def config_of(case: Case, device: torch.device) -> TrainConfig:
    """Nothing but steps."""
    return TrainConfig(
        steps=1_000_000,
        batch_size=case.clips,
        frames=case.frames,
        held_out_clips=0,
        sample_every_steps=0,
        checkpoint_every_steps=1_000_000,
        log_every_steps=1 if case.undo == "no waiting" else WARM,
        activation_checkpointing=case.checkpointing,
        compile=case.compile,
        channels_last=case.undo != "channels last",
        device=device.type,
    )


def task_for(case: Case, device: torch.device) -> tuple[StableDiffusionPipeline, Task, ClipsInMemory]:
    """The stage's model as the stage builds it, fp32 on the CPU."""
    stage = _stage_of(case, config_of(case, device))
    pipeline = _pocket() if case.model == "pocket" else random_sd15()
    source = ClipsInMemory(case, pipeline.vae_scale_factor)
    unet: nn.Module = pipeline.unet
    if stage.clips:
        module = MotionModuleConfig(preset=_preset(case))
        adapter = fresh_motion_adapter(module, pipeline.unet)
        pipeline.unet = unet = insert_motion_module(pipeline.unet, adapter, module.group_norm, module.image_norm)
    return pipeline, stage.task(pipeline, unet, stage.set_trainable(unet), source.latent_size), source


def _stage_of(case: Case, train: TrainConfig) -> Stage:
    """
    Raises:
        UserError: there is no such stage.
    """
    if case.stage not in STAGES:
        raise UserError(f"There is no stage {case.stage!r}.", f"Stages: {', '.join(STAGES)}.", "Name one of these.")
    if case.stage == "motion-module":
        return MotionModuleTraining(preset=_preset(case), train=train)
    if case.stage == "motion-lora":
        return MotionLoraTraining(rank=16 if case.model == "pocket" else 64, train=train)
    return DomainAdapterTraining(rank=16 if case.model == "pocket" else 128, train=train)


def _preset(case: Case) -> PresetName:
    return "from-base" if case.model == "pocket" else "v3"


def _pocket() -> StableDiffusionPipeline:
    from components.base.model import BaseModel, load_base
    from infra.pocket.build import WEIGHTS

    return load_base(BaseModel(path=WEIGHTS / "base"))


def random_sd_vae() -> AutoencoderKL:
    """Stable Diffusion's VAE with random weights (83.7 M parameters)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        scaling_factor=0.18215,
    )  # fmt: skip


def random_sd15() -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion 1.5's size with random weights, fp32; its tokenizer is the pocket model's."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = _pocket().tokenizer
    tokenizer.model_max_length = 77
    torch.manual_seed(0)
    parts: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64),
        "vae": random_sd_vae(),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
    }  # fmt: skip
    for part in parts.values():
        part.requires_grad_(False)
    return StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
