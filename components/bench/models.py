"""Models and clips of the bench, and what of the trainer's ways a case leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.base.model import BaseModel, load_base
from components.motion.files import load_motion_module
from components.motion.module import MotionModuleConfig, config_metadata, fresh_motion_adapter, insert_motion_module
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
from infra.pocket.build import WEIGHTS

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, MotionAdapter, StableDiffusionPipeline, UNet2DConditionModel

STAGES = ("motion-module", "motion-lora", "domain-adapter")
WARM, CLIPS = 4, 32
TRICKS = ("cached latents", "cached text", "kept memory", "channels last", "bf16 frozen weights", "no waiting")
COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("square", "circle", "cross", "triangle")


@dataclass(frozen=True)
class Size:
    """Of a model with random weights: `widths` and `layers` of the UNet by level, `preset` of its motion module."""

    widths: tuple[int, ...]
    layers: int
    text_width: int
    text_layers: int
    vae_widths: tuple[int, ...]
    preset: PresetName


SIZES = {
    "sd15": Size((320, 640, 1280, 1280), 2, 768, 12, (128, 256, 512, 512), "v3"),
    "tiny": Size((32, 64), 1, 64, 1, (32, 32, 32, 32), "from-base"),
}
ADAPTER_RANK, LORA_RANK = {"sd15": 128}, {"sd15": 64}


@dataclass(frozen=True)
class Case:
    """One line of the table. `model`: `pocket`, or one of `SIZES`, with random weights: `sd15`, Stable Diffusion 1.5's,
    or `tiny`, which shows that the code runs."""

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
    """The stage's model as the stage builds it, in fp32: the pocket one on the CPU, a random one on `device`.

    Raises:
        UserError: there is no such stage.
    """
    stage = stage_of(case, config_of(case, device))
    pipeline = _pocket() if case.model == "pocket" else random_pipeline(SIZES[case.model], device)
    source = ClipsInMemory(case, pipeline.vae_scale_factor)
    unet: nn.Module = pipeline.unet
    if stage.clips:
        adapter, metadata = _motion_module(case, pipeline.unet)
        norms = metadata["group_norm"], metadata["image_group_norm"]
        with pipeline.unet.device:  # the copy of the image model is made where that one is
            pipeline.unet = unet = insert_motion_module(pipeline.unet, adapter, *norms)
    return pipeline, stage.task(pipeline, unet, stage.set_trainable(unet), source.latent_size), source


def stage_of(case: Case, train: TrainConfig) -> Stage:
    """The config of the case's stage.

    Raises:
        UserError: there is no such stage.
    """
    if case.stage not in STAGES:
        raise UserError(f"There is no stage {case.stage!r}.", f"Stages: {', '.join(STAGES)}.", "Name one of these.")
    if case.stage == "motion-module":
        return MotionModuleTraining(preset=_preset(case), train=train)
    if case.stage == "motion-lora":
        return MotionLoraTraining(rank=LORA_RANK.get(case.model, 16), train=train)
    return DomainAdapterTraining(rank=ADAPTER_RANK.get(case.model, 16), train=train)


def _preset(case: Case) -> PresetName:
    return SIZES[case.model].preset if case.model in SIZES else "from-base"


def _motion_module(case: Case, unet: UNet2DConditionModel) -> tuple[MotionAdapter, dict[str, Any]]:
    """A fresh one and its metadata; the pocket MotionLoRA's is the trained one, since behind zero outputs it would get
    no gradient."""
    if case.model == "pocket" and case.stage == "motion-lora":
        adapter, metadata = load_motion_module(WEIGHTS / "motion-module")
        return adapter, dict(metadata)
    module = MotionModuleConfig(preset=_preset(case))
    with unet.device:
        return fresh_motion_adapter(module, unet), dict(config_metadata(module))


def _pocket() -> StableDiffusionPipeline:
    return load_base(BaseModel(path=WEIGHTS / "base"))


def random_sd_vae(widths: tuple[int, ...] = (128, 256, 512, 512)) -> AutoencoderKL:
    """Stable Diffusion's VAE with random weights (83.7 M parameters)."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths), layers_per_block=2, latent_channels=4, sample_size=512,
        scaling_factor=0.18215,
    )  # fmt: skip


def random_pipeline(size: Size, device: torch.device) -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion's kind with random weights on `device`, fp32; its tokenizer is the pocket
    model's."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "base" / "tokenizer", local_files_only=True)
    tokenizer.model_max_length = 77
    text = CLIPTextConfig(
        hidden_size=size.text_width, intermediate_size=4 * size.text_width, num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_width // 64, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    blocks = ["CrossAttnDownBlock2D"] * (len(size.widths) - 1) + ["DownBlock2D"]
    torch.manual_seed(0)
    with device:
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(
                cross_attention_dim=size.text_width, attention_head_dim=8, sample_size=64,
                block_out_channels=size.widths, layers_per_block=size.layers, down_block_types=blocks,
                up_block_types=[name.replace("Down", "Up") for name in reversed(blocks)],
            ),
            "text_encoder": CLIPTextModel(text),
            "vae": random_sd_vae(size.vae_widths).to("cpu"),  # where a training leaves it
        }  # fmt: skip
    for part in parts.values():
        part.requires_grad_(False)
    return StableDiffusionPipeline(
        **parts, tokenizer=tokenizer, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
