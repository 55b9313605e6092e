"""The training objective: predict the noise of every frame (paper eq. 1 for stills, eq. 7 for clips).

B batch, F frames, C channels, h w latents, L text positions, D text width. A still is a clip of one frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.noise import TIMESTEPS, add_noise, min_snr_weights

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Draw:
    """What chance decides in one step: noise (B, C, F, h, w), one timestep a clip, and which captions are dropped."""

    eps_BCFhw: Tensor
    t_B: Tensor
    drop_B: Tensor


def draw(shape: torch.Size, generator: torch.Generator, caption_dropout: float) -> Draw:
    """Noise i.i.d. over frames, and one uniform timestep for all frames of a clip, as the official train.py."""
    eps = torch.randn(shape, generator=generator)
    t = torch.randint(TIMESTEPS, (shape[0],), generator=generator)
    return Draw(eps, t, torch.rand(shape[0], generator=generator) < caption_dropout)


def video_predictor(unet: nn.Module) -> Predict:
    """eps(z_t, t, text) of a `UNetMotionModel`, which wants the text repeated for every frame."""

    def predict(z_t_BCFhw: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        frames = z_t_BCFhw.shape[2]
        text = text_BLD.repeat_interleave(frames, dim=0)
        return torch.as_tensor(unet(z_t_BCFhw, t_B, text, return_dict=False)[0])

    return predict


def image_predictor(unet: nn.Module) -> Predict:
    """eps(z_t, t, text) of a `UNet2DConditionModel`, every frame by itself."""

    def predict(z_t_BCFhw: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        batch, _, frames = z_t_BCFhw.shape[:3]
        z_t = z_t_BCFhw.transpose(1, 2).flatten(0, 1)
        t, text = t_B.repeat_interleave(frames), text_BLD.repeat_interleave(frames, dim=0)
        eps = torch.as_tensor(unet(z_t, t, text, return_dict=False)[0])
        return eps.view(batch, frames, *eps.shape[1:]).transpose(1, 2)

    return predict


def noise_errors(
    predict: Predict, z_0_BCFhw: Tensor, text_BLD: Tensor, eps_BCFhw: Tensor, t_B: Tensor, alpha_bar: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise, in fp32, one figure a clip (B,)."""
    z_t = add_noise(z_0_BCFhw, eps_BCFhw, t_B, alpha_bar)
    predicted = predict(z_t, t_B, text_BLD)
    return (predicted.float() - eps_BCFhw.float()).square().flatten(1).mean(dim=1)


def weighted_mean(errors_B: Tensor, t_B: Tensor, alpha_bar: Tensor, min_snr_gamma: float | None) -> Tensor:
    """The loss: a plain mean, as the paper; or weighted by min-SNR."""
    if min_snr_gamma is None:
        return errors_B.mean()
    return (errors_B * min_snr_weights(t_B, alpha_bar, min_snr_gamma)).mean()
