from __future__ import annotations

from typing import Any

import pytest
import torch

from components.noise import add_noise, alpha_bars, betas, inference_scheduler, min_snr_weights
from components.objective import draw, image_predictor, noise_errors, weighted_mean


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_the_schedule_is_that_of_diffusers(schedule: Any) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=schedule)
    assert torch.allclose(betas(schedule), theirs.betas, rtol=1e-5)
    z, eps, t = torch.randn(3, 4, 2, 8, 8), torch.randn(3, 4, 2, 8, 8), torch.tensor([0, 500, 999])
    assert torch.allclose(add_noise(z, eps, t, alpha_bars(schedule)), theirs.add_noise(z, eps, t), atol=1e-5)
    assert torch.allclose(inference_scheduler(schedule).alphas_cumprod, alpha_bars(schedule), rtol=1e-4)


def test_min_snr_weights_by_hand() -> None:
    alpha_bar = torch.tensor([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9
    weights = min_snr_weights(torch.tensor([0, 1, 2]), alpha_bar, gamma=5)
    assert torch.allclose(weights, torch.tensor([5 / 9, 1.0, 1.0]))
    errors = torch.tensor([9.0, 1.0, 2.0])
    assert weighted_mean(errors, torch.tensor([0, 1, 2]), alpha_bar, None) == 4
    assert torch.isclose(weighted_mean(errors, torch.tensor([0, 1, 2]), alpha_bar, 5), torch.tensor(8 / 3))


def test_the_error_of_a_model_that_knows_the_noise_is_zero() -> None:
    alpha_bar, z_0 = alpha_bars(), torch.randn(2, 4, 3, 8, 8)
    eps, t = torch.randn(2, 4, 3, 8, 8), torch.tensor([100, 800])

    def oracle(z_t: torch.Tensor, t_B: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        share = alpha_bar[t_B].view(-1, 1, 1, 1, 1)
        return (z_t - share.sqrt() * z_0) / (1 - share).sqrt()

    assert noise_errors(oracle, z_0, torch.zeros(2, 1, 1), eps, t, alpha_bar).max() < 1e-6
    nothing = noise_errors(lambda z_t, t_B, text: torch.zeros_like(z_t), z_0, torch.zeros(2, 1, 1), eps, t, alpha_bar)
    assert torch.allclose(nothing, eps.square().mean(dim=(1, 2, 3, 4)))


def test_a_clip_has_one_timestep_and_noise_of_its_own_in_every_frame() -> None:
    chance = draw(torch.Size((64, 4, 16, 8, 8)), torch.Generator().manual_seed(0), caption_dropout=0.1)
    assert chance.t_B.shape == (64,)
    assert chance.eps_BCFhw[:, :, 0].sub(chance.eps_BCFhw[:, :, 1]).abs().mean() > 1
    assert 0 < chance.drop_B.float().mean() < 0.3


def test_the_image_model_sees_every_frame_with_its_clip_s_text_and_time(pipeline: Any) -> None:
    z, t, text = torch.randn(2, 4, 3, 8, 8), torch.tensor([1, 700]), torch.randn(2, 32, 128)
    with torch.no_grad():
        whole = image_predictor(pipeline.unet)(z, t, text)
        alone = pipeline.unet(z[1:, :, 2], t[1:], text[1:]).sample
    assert torch.allclose(whole[1:, :, 2], alone, atol=1e-5)
