from __future__ import annotations

from typing import Any

import pytest
import torch

from components.diffusion.noise import (
    add_noise,
    alpha_bars,
    betas,
    inference_scheduler,
    min_snr_weights,
    noisy_weights,
    velocity,
)
from components.diffusion.objective import draw, image_predictor, prediction_errors, weighted_mean


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

    assert prediction_errors(oracle, z_0, torch.zeros(2, 1, 1), eps, t, alpha_bar).max() < 1e-6
    nothing = prediction_errors(
        lambda z_t, t_B, text: torch.zeros_like(z_t), z_0, torch.zeros(2, 1, 1), eps, t, alpha_bar
    )
    assert torch.allclose(nothing, eps.square().mean(dim=(1, 2, 3, 4)))


def test_a_clip_has_one_timestep_and_noise_of_its_own_in_every_frame() -> None:
    drawn = draw(range(64), (4, 16, 8, 8), seed=0, caption_dropout=0.1)
    assert drawn.t_B.shape == (64,)
    assert drawn.eps_BCFhw.shape == (64, 4, 16, 8, 8)
    assert drawn.eps_BCFhw[:, :, 0].sub(drawn.eps_BCFhw[:, :, 1]).abs().mean() > 1
    assert drawn.eps_BCFhw.std() == pytest.approx(1, abs=0.01)
    assert 0 < drawn.drop_B.float().mean() < 0.3


def test_a_sample_s_draws_depend_on_seed_and_number_alone() -> None:
    whole = draw(range(10**12, 10**12 + 8), (4, 2, 3, 3), 5, 0.5, 0.1)
    for samples in ([10**12 + 3], [10**12 + 7, 10**12 + 3]):
        part = draw(samples, (4, 2, 3, 3), 5, 0.5, 0.1)
        assert torch.equal(part.eps_BCFhw[-1], whole.eps_BCFhw[3])
        assert (part.t_B[-1], part.drop_B[-1]) == (whole.t_B[3], whole.drop_B[3])
    assert not torch.equal(draw([3], (4, 2, 3, 3), 6).eps_BCFhw, draw([3], (4, 2, 3, 3), 5).eps_BCFhw)


def test_options_leave_the_other_numbers_alone() -> None:
    """Offset noise is one number for each channel of a clip; strata cover all timesteps in every batch."""
    plain, offset = draw(range(32), (4, 2, 3, 3), 0), draw(range(32), (4, 2, 3, 3), 0, offset_noise=0.1)
    added = offset.eps_BCFhw - plain.eps_BCFhw
    assert torch.allclose(added, added[:, :, :1, :1, :1].expand_as(added), atol=1e-6)
    assert added.std() == pytest.approx(0.1, rel=0.3)
    assert torch.equal(offset.t_B, plain.t_B)
    strata = draw(range(64, 72), (4, 1, 1, 1), 0, strata=8)
    assert (strata.t_B * 8 // 1000).tolist() == list(range(8))
    assert torch.equal(strata.eps_BCFhw, draw(range(64, 72), (4, 1, 1, 1), 0).eps_BCFhw)


def test_velocity_is_that_of_diffusers_and_a_model_that_knows_it_has_no_error() -> None:
    from diffusers import DDPMScheduler

    z_0, eps, t = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 4, 3, 8, 8), torch.tensor([100, 800])
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012).get_velocity(z_0, eps, t)
    assert torch.allclose(velocity(z_0, eps, t, alpha_bars()), theirs, atol=1e-5)
    nothing = torch.zeros(2, 1, 1)
    errors = prediction_errors(lambda *_: theirs, z_0, nothing, eps, t, alpha_bars(), "v_prediction")
    assert errors.max() < 1e-9
    weights = min_snr_weights(torch.tensor([0, 1, 2]), torch.tensor([0.9, 0.5, 0.1]), 5, "v_prediction")
    assert torch.allclose(weights, torch.tensor([5 / 10, 1 / 2, (1 / 9) / (10 / 9)]))


def test_the_image_model_sees_every_frame_with_its_clip_s_text_and_time(pipeline: Any) -> None:
    z, t, text = torch.randn(2, 4, 3, 8, 8), torch.tensor([1, 700]), torch.randn(2, 32, 128)
    with torch.no_grad():
        whole = image_predictor(pipeline.unet)(z, t, text)
        alone = pipeline.unet(z[1:, :, 2], t[1:], text[1:]).sample
    assert torch.allclose(whole[1:, :, 2], alone, atol=1e-5)


@pytest.mark.parametrize("steps", [10, 25, 50])
def test_ddim_is_the_official_sampler_by_hand(steps: int) -> None:
    """Song et al. 2021, eq. 12 with sigma 0, on the timesteps of the official demos: 961, 921, ..., 1 for 25 steps."""
    scheduler = inference_scheduler("linear", "ddim")
    scheduler.set_timesteps(steps)
    stride = 1000 // steps
    expected = [stride * (steps - 1 - i) + 1 for i in range(steps)]
    assert scheduler.timesteps.tolist() == expected
    assert steps != 25 or (expected[0], expected[1], expected[-1]) == (961, 921, 1)

    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64), 0)
    z = by_hand = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in expected:
        eps = torch.sin(3 * by_hand) * (1 + t / 1000)
        now = alpha_bar[t]
        after = alpha_bar[t - stride] if t >= stride else torch.tensor(1.0, dtype=torch.float64)
        z_0 = (by_hand - (1 - now).sqrt() * eps) / now.sqrt()
        by_hand = after.sqrt() * z_0 + (1 - after).sqrt() * eps
        z = scheduler.step(torch.sin(3 * z) * (1 + t / 1000), t, z).prev_sample
    torch.testing.assert_close(z, by_hand, rtol=1e-4, atol=1e-5)


def test_noisy_weights_by_hand() -> None:
    """1 + 1/SNR is (1 + 1/9, 2, 10) here, clamped at 4; for the velocity, which has it already, the clamp alone."""
    alpha_bar, t = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, 1, 2])
    expected = torch.tensor([10 / 9, 2.0, 4.0])
    torch.testing.assert_close(noisy_weights(t, alpha_bar, 4), expected)
    torch.testing.assert_close(noisy_weights(t, alpha_bar, 4, "v_prediction"), torch.tensor([1.0, 1.0, 0.4]))
    errors = torch.tensor([3.0, 3.0, 6.0])
    mean = (3 * 10 / 9 + 3 * 2 + 6 * 4) / 3
    assert weighted_mean(errors, t, alpha_bar, None, noisy_weight_max=4).item() == pytest.approx(mean, rel=1e-5)
