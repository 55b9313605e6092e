"""The training objective: predict the noise of every frame (paper eq. 1 for images, eq. 7 for clips).

B batch, F frames, C channels, h w latents, L text positions, D text width. A still is a clip of one frame. Samples are
numbered through a whole training (`infra.seeds`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from components.diffusion.noise import TIMESTEPS, Prediction, add_noise, min_snr_weights, noisy_weights, velocity
from infra.seeds import generator_for, key_for

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""z_t (B, C, F, h, w), t (B,) and text (B, L, D) to the predicted noise or velocity (B, C, F, h, w)."""


@dataclass(frozen=True)
class Draw:
    """The random draws of one step: noise (B, C, F, h, w), one timestep a clip, and which captions are dropped."""

    eps_BCFhw: Tensor
    """Noise."""
    t_B: Tensor
    """One timestep per clip."""
    drop_B: Tensor
    """Whether the caption of a clip is dropped."""


def draw(
    samples: Sequence[int],
    shape_CFhw: Sequence[int],
    seed: int,
    caption_dropout: float = 0.0,
    offset_noise: float = 0.0,
    strata: int | None = None,
) -> Draw:
    """The random draws of these samples. Each is a function of (seed, sample number) alone.

    As in the official train.py, noise is i.i.d. over frames, and the timestep is uniform and the same for all frames of
    a clip. `offset_noise` is the strength of an offset per clip and channel (Guttenberg 2023). `strata` = n stratifies
    the timesteps: sample k draws from the (k mod n)-th of n equal parts of all timesteps.
    """
    eps, t, drop = [], [], []
    for sample in samples:
        noise = generator_for(_key("noise", seed), sample).standard_normal(tuple(shape_CFhw), np.float32)
        if offset_noise:
            offset = generator_for(_key("offset noise", seed), sample).standard_normal(
                (shape_CFhw[0], 1, 1, 1), np.float32
            )
            noise += np.float32(offset_noise) * offset
        uniform = generator_for(_key("timestep", seed), sample).random()
        if strata is not None:
            uniform = (sample % strata + uniform) / strata
        eps.append(noise)
        t.append(min(int(uniform * TIMESTEPS), TIMESTEPS - 1))
        drop.append(bool(generator_for(_key("caption dropout", seed), sample).random() < caption_dropout))
    return Draw(torch.from_numpy(np.stack(eps)), torch.tensor(t), torch.tensor(drop))


@lru_cache(maxsize=64)
def _key(purpose: str, seed: int) -> np.uint64:
    return key_for(purpose, seed)


def video_predictor(unet: nn.Module) -> Predict:
    """Prediction of a `UNetMotionModel` from (z_t, t, text). Its text input is repeated for every frame."""

    def predict(z_t_BCFhw: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        frames = z_t_BCFhw.shape[2]
        text = text_BLD.repeat_interleave(frames, dim=0)
        return torch.as_tensor(unet(z_t_BCFhw, t_B, text, return_dict=False)[0])

    return predict


def image_predictor(unet: nn.Module) -> Predict:
    """Prediction of a `UNet2DConditionModel` from (z_t, t, text), for each frame separately."""

    def predict(z_t_BCFhw: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        batch, _, frames = z_t_BCFhw.shape[:3]
        z_t = z_t_BCFhw.transpose(1, 2).flatten(0, 1)
        t, text = t_B.repeat_interleave(frames), text_BLD.repeat_interleave(frames, dim=0)
        predicted = torch.as_tensor(unet(z_t, t, text, return_dict=False)[0])
        return predicted.view(batch, frames, *predicted.shape[1:]).transpose(1, 2)

    return predict


def prediction_errors(
    predict: Predict,
    z_0_BCFhw: Tensor,
    text_BLD: Tensor,
    eps_BCFhw: Tensor,
    t_B: Tensor,
    alpha_bar: Tensor,
    prediction: Prediction = "epsilon",
) -> Tensor:
    """Mean squared error of the predicted noise (or velocity) per clip (B,), in fp32."""
    z_t = add_noise(z_0_BCFhw, eps_BCFhw, t_B, alpha_bar)
    target = eps_BCFhw if prediction == "epsilon" else velocity(z_0_BCFhw, eps_BCFhw, t_B, alpha_bar)
    predicted = predict(z_t, t_B, text_BLD)
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


def weighted_mean(
    errors_B: Tensor,
    t_B: Tensor,
    alpha_bar: Tensor,
    min_snr_gamma: float | None,
    prediction: Prediction = "epsilon",
    noisy_weight_max: float | None = None,
) -> Tensor:
    """The loss: the mean over the batch as in the paper, or weighted by min-SNR, by `noisy_weights`, or by both."""
    if min_snr_gamma is not None:
        errors_B = errors_B * min_snr_weights(t_B, alpha_bar, min_snr_gamma, prediction)
    if noisy_weight_max is not None:
        errors_B = errors_B * noisy_weights(t_B, alpha_bar, noisy_weight_max, prediction)
    return errors_B.mean()
