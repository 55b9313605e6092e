"""How a stage is trained: the settings of the trainer."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from components.noise import BetaSchedule
from infra.config import Config, execution


class TrainConfig(Config):
    """How a stage is trained."""

    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(4, ge=1)
    """Clips a step (stills, in the domain adapter's stage)."""
    gradient_accumulation: int = Field(1, ge=1)
    """Batches summed up in one optimizer step."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's learning rate after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    learning_rate_decay: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant as the official code, or a half cosine to zero at the last step."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's momentum factors."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    frames: int = Field(16, ge=1)
    """Frames of a training window; the domain adapter's stage draws single frames whatever stands here."""
    seed: int = 0
    """Seed of batches, noise, timesteps, dropped captions and fresh weights."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is then what is saved; none is off."""
    beta_schedule: BetaSchedule = "linear"
    """Noise schedule; `linear` as the official video stages."""
    min_snr_gamma: float | None = None
    """Weights the loss by min(SNR, gamma)/SNR; none is the paper's plain mean."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward pass, the weights being fp32: `auto` is bf16 autocast on CUDA and fp32 elsewhere."""
    held_out_clips: int = Field(16, ge=0)
    """Clips kept out of training to measure the loss by timestep band; 0 is off."""
    held_out_every_steps: int = execution(500, ge=1)
    """Steps between two such measurements."""
    checkpoint_every_steps: int = execution(500, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = execution(2, ge=1)
    """Checkpoints kept on disk while the run lasts."""
    log_every_steps: int = execution(10, ge=1)
    """Steps averaged in one point of the loss curve."""
    skipped_steps_max: int = execution(50, ge=0)
    """Steps with a non-finite loss or gradient that are skipped before the run is given up."""
    gradient_checkpointing: bool = execution(False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    device: str = execution("auto")
    """`auto`, `cpu` or `cuda`."""


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """The learning rate of step 0, 1, …"""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.learning_rate_decay == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
