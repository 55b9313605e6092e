"""What a training will cost, before anything is loaded: from a recipe and the base model's config alone.

FLOPs and bytes are counted (`components.train.estimate`); hours are those FLOPs at a share of the GPU's matmul rate
that well-tuned trainers of this kind reach, which is an assumption and said as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.base.checks import read_config
from components.base.model import HUB_REFERENCE
from components.lora import lora
from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module
from components.train.activation_checkpointing import Checkpointing
from components.train.config import TrainConfig
from components.train.estimate import GIB, Memory, Shape, least_that_fits, memory, step_flops
from infra.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB; bf16 matmul rate that large products reach, TFLOP/s; a usual price an hour, US dollars."""

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


@dataclass(frozen=True)
class Plan:
    """`flops` of one optimizer step without recomputing; `mode` is the least recomputation that fits the GPU, None when
    none does; `memory` is for that mode, or for `full`."""

    stage: str
    trained: int
    frozen: int
    steps: int
    samples: int
    flops: int
    memory: Memory
    mode: Checkpointing | None
    gpu: Gpu
    flops_run: int

    def hours(self, share: float) -> float:
        return self.flops_run * self.steps / (share * self.gpu.tflops * 1e12) / 3600

    def lines(self) -> list[str]:
        """For people."""
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
            ("", ""),
            ("time", f"{usual:.3g} h at {middle} of {self.gpu.tflops:g} TFLOP/s ({fast:.3g} h at {high}, {slow:.3g} h "
             f"at {low}): assumed shares"),
            ("cost", f"${usual * self.gpu.dollars:.3g} at ${self.gpu.dollars:g} an hour"),
        ]  # fmt: skip
        return [f"{name:<24} {value}".rstrip() for name, value in rows]


def plan(
    stage: str,
    train: TrainConfig,
    base: Path,
    latent_size: tuple[int, int],
    gpu: str,
    module: MotionModuleConfig | None = None,
    rank: int = 0,
) -> Plan:
    """The plan of `domain-adapter`, `motion-module` or `motion-lora` on latents of this height and width.

    Raises:
        UserError: an unknown GPU, or a base model whose UNet's config cannot be read.
    """
    if gpu not in GPUS:
        raise UserError(f"There is no figure for the GPU {gpu!r}.", f"Known: {', '.join(GPUS)}.", "Name one of these.")
    settings = unet_settings(base)
    frames = 1 if stage == "domain-adapter" else train.frames
    shape = Shape(train.batch_size, frames, *latent_size, 77, int(settings["cross_attention_dim"]))

    def build() -> nn.Module:
        return _model(stage, settings, module or MotionModuleConfig(preset="from-base"), rank)

    model = build()
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    frozen = sum(each.numel() for each in model.parameters()) - trained
    parts = train.gradient_accumulation
    moments = 1 if train.optimizer == "adamw-8bit" else 4
    room = GPUS[gpu].memory_gib * GIB
    mode, needed = least_that_fits(room, memory(build(), shape, train.ema_decay is not None, moments))
    flops = step_flops(model, shape) * parts
    run = flops if mode == "none" else step_flops(build(), shape, mode or "full") * parts
    samples = train.steps * train.batch_size * parts
    return Plan(stage, trained, frozen, train.steps, samples, flops, needed, mode, GPUS[gpu], run)


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


def _model(stage: str, settings: dict[str, Any], module: MotionModuleConfig, rank: int) -> nn.Module:
    """The stage's model on the meta device, with what learns marked."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(settings)
        if stage != "domain-adapter":
            unet = insert_motion_module(unet, fresh_motion_adapter(module, unet))
        if stage == "motion-module":
            unet.requires_grad_(False)
            for name, parameter in unet.named_parameters():
                parameter.requires_grad_(".motion_modules." in name)
        else:
            lora.add_trainable_lora(unet, stage, rank, seed=0)
    assert isinstance(unet, nn.Module)
    return unet
