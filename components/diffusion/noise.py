"""The noise of training and sampling: DDPM's forward process (Ho et al. 2020, eq. 4) over T = 1000 timesteps."""

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


def betas(schedule: BetaSchedule = "linear") -> Tensor:
    """beta_t, float32 (T,). `linear` is the video stages' (official training.yaml), `scaled_linear` is SD 1.5's own:
    linear in sqrt(beta)."""
    if schedule == "linear":
        return torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float32)
    return torch.linspace(BETA_START**0.5, BETA_END**0.5, TIMESTEPS, dtype=torch.float32) ** 2


def alpha_bars(schedule: BetaSchedule = "linear") -> Tensor:
    """alpha_bar_t = prod_{s<=t} (1 - beta_s), float32 (T,): the share of the picture's variance left at t."""
    return torch.cumprod(1.0 - betas(schedule), dim=0)


def add_noise(z_0: Tensor, eps: Tensor, t_B: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps, one t for each item of the batch."""
    share = alpha_bar.to(z_0.device)[t_B].view(-1, *[1] * (z_0.dim() - 1))
    return share.sqrt() * z_0 + (1 - share).sqrt() * eps


def velocity(z_0: Tensor, eps: Tensor, t_B: Tensor, alpha_bar: Tensor) -> Tensor:
    """v_t = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) z_0 (Salimans and Ho 2022, appendix D)."""
    share = alpha_bar.to(z_0.device)[t_B].view(-1, *[1] * (z_0.dim() - 1))
    return share.sqrt() * eps - (1 - share).sqrt() * z_0


def min_snr_weights(t_B: Tensor, alpha_bar: Tensor, gamma: float, prediction: Prediction = "epsilon") -> Tensor:
    """min(SNR, gamma) / SNR for epsilon-prediction, / (SNR + 1) for velocity, (B,) (Hang et al. 2023, eq. 8)."""
    share = alpha_bar.to(t_B.device)[t_B]
    snr = share / (1 - share)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def inference_scheduler(
    schedule: BetaSchedule = "linear", sampler: Sampler = "ddim", prediction: Prediction = "epsilon"
) -> SchedulerMixin:
    """DDIM as the official demos sample (inference-v3.yaml: no clipping, `linspace` spacing, offset 1), or another
    sampler on the same noise."""
    import diffusers

    made = getattr(diffusers, SAMPLERS[sampler])
    given: dict[str, object] = {"clip_sample": False, "set_alpha_to_one": False} if sampler == "ddim" else {}
    if sampler == "ddpm":
        given = {"clip_sample": False}
    if sampler == "dpm++-2m":
        given = {"algorithm_type": "dpmsolver++", "solver_order": 2}
    with quiet():  # some of them warn of numpy's ways
        return made(
            num_train_timesteps=TIMESTEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule=schedule,
            prediction_type=prediction,
            steps_offset=1,
            timestep_spacing="linspace",
            **given,
        )
