"""What a training costs, from the stage and the base model's config alone; no weights are loaded.

FLOPs and bytes are counted (`components.train.estimate`). Hours assume the share of the GPU's matmul rate that
well-tuned trainers of this kind reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.base.checks import read_config
from components.base.model import HUB_REFERENCE
from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module
from components.stages.stage import Stage
from components.train.activation_checkpointing import Checkpointing
from components.train.estimate import GIB, Memory, Shape, least_that_fits, memory, step_flops
from infra.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB; bf16 matmul rate that large products reach, in TFLOP/s; a usual price per hour, in US dollars."""

    name: str
    memory_gib: float
    tflops: float
    dollars: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 139, 800, 3.5),
        Gpu("h100", 78, 800, 2.5),
        Gpu("a100-80", 78, 252, 1.5),
        Gpu("a100-40", 39, 252, 1.2),
        Gpu("l40s", 44, 250, 1.0),
        Gpu("rtx-4090", 23, 150, 0.5),
        Gpu("rtx-3090", 23, 65, 0.25),
        Gpu("l4", 22, 55, 0.5),
    )
}
SHARES = (0.21, 0.31, 0.38)
"""Of the matmul rate: published trainers of Stable Diffusion; well-tuned eager; compiled. Assumed, not measured."""
TEXT_LENGTH = 77  # tokens, of SD 1.5
FROM_BASE = MotionModuleConfig(preset="from-base")


@dataclass(frozen=True)
class Plan:
    """What `plan` found. `mode` is the least activation checkpointing that fits the GPU, None if none does."""

    stage: str
    trained: int
    """Parameters."""
    frozen: int
    """Parameters."""
    steps: int
    samples: int
    """In all steps together."""
    flops: int
    """Of one optimizer step, without what is recomputed."""
    memory: Memory
    """For `mode`, or for `full` if none fits."""
    mode: Checkpointing | None
    gpu: Gpu
    flops_run: int
    """Of one optimizer step, with what is recomputed."""
    checkpoint_bytes: int
    """Of one checkpoint: trained weights, both moments of AdamW, and the EMA if there is one, in fp32."""
    checkpoints: int
    """On disk at most while the training runs: the newest, the best one, and the one being written."""

    def hours(self, share: float) -> float:
        """Of the whole training, at this share of the GPU's matmul rate."""
        return self.flops_run * self.steps / (share * self.gpu.tflops * 1e12) / 3600

    def lines(self) -> list[str]:
        """Text to print."""
        slow, usual, fast = (self.hours(share) for share in SHARES)
        fits = f"{self.mode} recomputed" if self.mode not in (None, "none") else "nothing recomputed"
        if self.mode is None:
            fits = "DOES NOT FIT: lower train.batch_size and raise train.gradient_accumulation"
        low, middle, high = (f"{share:.0%}" for share in SHARES)
        rows = [
            ("stage", self.stage),
            ("trained parameters", f"{self.trained:,}"),
            ("frozen parameters", f"{self.frozen:,}"),
            ("steps", f"{self.steps:,} of {self.samples // self.steps} samples"),
            ("work", f"{self.flops / 1e12:.3g} TFLOP a step, {self.flops * self.steps / 1e18:.3g} EFLOP in all"),
            ("", ""),
            *((name, f"{amount / GIB:8.2f} GiB") for name, amount in self.memory.parts.items() if amount),
            ("GPU memory", f"{self.memory.total / GIB:8.2f} GiB of {self.gpu.memory_gib:g} on {self.gpu.name}, {fits}"),
            ("checkpoints on disk", f"{self.checkpoints * self.checkpoint_bytes / GIB:8.2f} GiB at most while it runs: "
             f"{self.checkpoints} of {self.checkpoint_bytes / GIB:.2f} GiB"),
            ("", ""),
            ("time", f"{usual:.3g} h at {middle} of {self.gpu.tflops:g} TFLOP/s ({fast:.3g} h at {high}, {slow:.3g} h "
             f"at {low}): assumed shares"),
            ("cost", f"${usual * self.gpu.dollars:.3g} at ${self.gpu.dollars:g} an hour"),
        ]  # fmt: skip
        return [f"{name:<24} {value}".rstrip() for name, value in rows]


def plan(
    stage: Stage, base: Path, latent_size: tuple[int, int], gpu: str, module: MotionModuleConfig = FROM_BASE
) -> Plan:
    """What a stage costs on latents of this height and width; `module` is the shape of the motion module that a stage
    on clips is given, where it does not train one itself.

    Raises:
        UserError: an unknown GPU, or a base model whose UNet's config cannot be read.
    """
    if gpu not in GPUS:
        raise UserError(f"There is no figure for the GPU {gpu!r}.", f"Known: {', '.join(GPUS)}.", "Name one of these.")
    settings, train = unet_settings(base), stage.train
    shape = Shape(train.batch_size, stage.frames, *latent_size, TEXT_LENGTH, int(settings["cross_attention_dim"]))

    def build() -> nn.Module:
        return _model(stage, settings, module)

    model = build()
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    frozen = sum(each.numel() for each in model.parameters()) - trained
    parts = train.gradient_accumulation
    moments = 1 if train.optimizer == "adamw-8bit" else 4
    room = GPUS[gpu].memory_gib * GIB
    mode, needed = least_that_fits(
        room, memory(build(), shape, train.ema_decay is not None, moments, predict=stage.predictor)
    )
    one, clips = replace(shape, clips=1), train.batch_size * parts  # FLOPs are proportional to the clips
    flops = step_flops(model, one, predict=stage.predictor) * clips
    run = flops
    if mode != "none":
        run = step_flops(build(), one, mode or "full", stage.predictor) * clips
    samples = train.steps * train.batch_size * parts
    copies = 1 + (0.5 if train.optimizer == "adamw-8bit" else 2) + (train.ema_decay is not None)
    return Plan(
        stage.kind, trained, frozen, train.steps, samples, flops, needed, mode, GPUS[gpu], run,
        int(4 * trained * copies), train.keep_checkpoints + 2,
    )  # fmt: skip


def unet_settings(base: Path) -> dict[str, Any]:
    """The config of a base model's UNet, from its folder; SD 1.5's is known by its hub id.

    Raises:
        UserError: it cannot be read.
    """
    if base.as_posix() == HUB_REFERENCE and not base.exists():
        return {
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "sample_size": 64,
        }
    return read_config(base, "unet")


def _model(stage: Stage, settings: dict[str, Any], module: MotionModuleConfig) -> nn.Module:
    """The stage's model on the meta device, with `requires_grad` set on what it trains."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(settings)
        if stage.clips:
            unet = insert_motion_module(unet, fresh_motion_adapter(stage.new_module or module, unet))
        stage.set_trainable(unet)
    assert isinstance(unet, nn.Module)
    return unet
