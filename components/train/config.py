"""How a stage is trained: the settings of the trainer."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.diffusion.noise import BetaSchedule
from components.train.activation_checkpointing import Checkpointing
from infra.config import Config, added, execution


class TrainConfig(Config):
    """How a stage is trained."""

    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(4, ge=1)
    """Clips a step, of all workers together (stills, in the domain adapter's stage)."""
    gradient_accumulation: int = Field(1, ge=1)
    """Batches summed up in one optimizer step."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's learning rate after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from zero."""
    learning_rate_decay: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant as the official code, or a half cosine to zero at the last step."""
    weight_decay: float = Field(1e-2, ge=0)
    """AdamW's decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's momentum factors."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """`adamw-8bit` keeps the moments in a byte each (needs bitsandbytes and CUDA)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    frames: int = Field(16, ge=1)
    """Frames of a training window; the domain adapter's stage draws single frames whatever stands here."""
    seed: int = 0
    """Seed of batches, noise, timesteps, dropped captions and fresh weights."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is saved; none is off."""
    beta_schedule: BetaSchedule = "linear"
    """Noise schedule; `linear` as the official video stages."""
    offset_noise: float = Field(0.0, ge=0)
    """Share of noise that is the same all over a channel of a clip; 0 is the paper's."""
    stratified_timesteps: bool = False
    """Spreads the timesteps of a step evenly over all there are, instead of drawing each from all of them."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weights the loss by min(SNR, gamma)/SNR; none is the paper's plain mean."""
    noisy_weight_max: float | None = added(None, gt=1)
    """Weights the loss by 1 + 1/SNR, but no more than this, so that the noisy steps count in which paths are decided;
    none is the paper's plain mean. With min_snr_gamma both factors apply."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the forward pass: `auto` is bf16 on CUDA and fp32 elsewhere. What learns is fp32 in any case; in bf16 on CUDA
    frozen weights are bf16."""
    held_out_clips: int = Field(16, ge=0)
    """Clips kept out of training to measure the loss by timestep band; 0 is off."""
    held_out_every_steps: int = execution(500, ge=1)
    """Steps between two such measurements."""
    sample_every_steps: int = execution(1000, ge=0)
    """Steps between two drawings of the sample prompts, always from the same noise, at step 0 and at the end too; 0 is
    off."""
    sample_prompts: tuple[str, ...] = execution(())
    """What is drawn; none takes the captions of the first two clips that are held out."""
    checkpoint_every_steps: int = execution(500, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = execution(2, ge=1)
    """Newest checkpoints kept on disk while the run lasts, and beside them the one of the lowest held-out loss."""
    log_every_steps: int = execution(10, ge=1)
    """Steps averaged in one point of the loss curve; on CUDA the loss is looked at no more often."""
    skipped_steps_max: int = execution(50, ge=0)
    """Steps with a non-finite loss or gradient that are skipped before the run is given up."""
    activation_checkpointing: Checkpointing | Literal["auto"] = execution("none")
    """What recomputes its activations in the backward pass: `none`; `resnets`; `full`, which adds spatial and temporal
    transformers: a tenth of the memory for about a third more time; `auto`, the least of these that fits."""
    channels_last: bool = execution(True)
    """Convolutions with channels innermost, which is what their kernels want."""
    compile: bool = execution(False)
    """torch.compile of each resnet and transformer: minutes at the start, faster steps after."""
    device: str = execution("auto")
    """`auto`, `cpu` or `cuda`."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = execution(())
    """Where the curves go beside TensorBoard; each needs its package, and takes its own environment variables."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} leaves nothing of steps={self.steps}")
        if self.optimizer == "adamw-8bit" and self.device == "cpu":
            raise ValueError("optimizer=adamw-8bit needs CUDA, and device=cpu")
        return self


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """The learning rate of step 0, 1, …"""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.learning_rate_decay == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
