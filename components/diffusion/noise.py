"""Noise schedules of training and sampling: DDPM's forward process (Ho et al. 2020, eq. 4) with T = 1000 timesteps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
Prediction = Literal["epsilon", "v_prediction"]
BetaSchedule = Literal["linear", "scaled_linear"]
Sampler = Literal["ddim", "ddpm", "euler", "euler-ancestral", "dpm++-2m", "pndm", "lcm"]
SAMPLERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++-2m": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
    "lcm": "LCMScheduler",
}
"""Sampler to diffusers' class."""
SAMPLER_OPTIONS: dict[str, dict[str, object]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "leading"},
    "ddpm": {"clip_sample": False},
    "pndm": {"skip_prk_steps": True},
    "dpm++-2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
}


def betas(schedule: BetaSchedule = "linear") -> Tensor:
    """beta_t, float32 (T,). `linear` is for the video stages (official training.yaml). `scaled_linear`, which is linear
    in sqrt(beta), is that of SD 1.5."""
    if schedule == "linear":
        return torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float32)
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float32) ** 2


def alpha_bars(schedule: BetaSchedule = "linear") -> Tensor:
    """alpha_bar_t = prod_{s<=t} (1 - beta_s), float32 (T,); diffusers' `alphas_cumprod`."""
    return torch.cumprod(1.0 - betas(schedule), dim=0)


def add_noise(z_0: Tensor, eps: Tensor, t_B: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps, with one t per item of the batch."""
    alpha_bar_t = _at(alpha_bar, t_B, z_0)
    return alpha_bar_t.sqrt() * z_0 + (1 - alpha_bar_t).sqrt() * eps


def velocity(z_0: Tensor, eps: Tensor, t_B: Tensor, alpha_bar: Tensor) -> Tensor:
    """v_t = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) z_0 (Salimans and Ho 2022, appendix D)."""
    alpha_bar_t = _at(alpha_bar, t_B, z_0)
    return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * z_0


def min_snr_weights(t_B: Tensor, alpha_bar: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """Loss weights (B,): min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for velocity (Hang et al. 2023, eq. 8)."""
    alpha_bar_t = alpha_bar.to(t_B.device)[t_B]
    snr = alpha_bar_t / (1 - alpha_bar_t)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def noisy_weights(t_B: Tensor, alpha_bar: Tensor, largest: float, prediction: Prediction = "epsilon") -> Tensor:
    """Loss weights (B,) of at most `largest` that count the noisy steps, where paths and layout are decided.

    1 + 1/SNR, which makes of epsilon's error the velocity's (Salimans & Ho 2022, "SNR+1 weighting"), clamped; for the
    velocity, which has that weight already, the clamp alone.
    """
    alpha_bar_t = alpha_bar.to(t_B.device)[t_B]
    full = 1 + (1 - alpha_bar_t) / alpha_bar_t
    return full.clamp(max=largest) / (1 if prediction == "epsilon" else full)


def inference_scheduler(
    schedule: BetaSchedule = "linear", sampler: Sampler = "ddim", prediction: Prediction = "epsilon"
) -> SchedulerMixin:
    """The diffusers scheduler of a sampler.

    DDIM is that of the official demos: inference-v3.yaml (no clipping, offset 1) under diffusers 0.11.1, whose DDIM has
    timesteps 961, 921, ..., 1 for 25 steps, and alpha_bar = 1 after the last.
    """
    import diffusers

    scheduler = getattr(diffusers, SAMPLERS[sampler])
    with quiet():  # some schedulers log numpy warnings
        return scheduler(
            num_train_timesteps=TIMESTEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule=schedule,
            prediction_type=prediction,
            steps_offset=1,
            **{"timestep_spacing": "linspace", **SAMPLER_OPTIONS.get(sampler, {})},
        )


def _at(alpha_bar: Tensor, t_B: Tensor, like: Tensor) -> Tensor:
    """alpha_bar_t of each item of a batch, shaped to be multiplied with `like`."""
    return alpha_bar.to(like.device)[t_B].view(-1, *[1] * (like.dim() - 1))
