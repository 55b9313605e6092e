"""Precision and memory of the animator: one UNet, fp16 where CUDA is, and what happens when memory runs out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.animate.animation import animate
from components.animate.animator import Animator
from components.animate.config import AnimationConfig, AnimationModels, WeightedFile, resolve_precision
from components.base.model import BaseModel
from components.diffusion import sampling
from infra.errors import TransientError, WorkError

CONFIG = AnimationConfig(prompt="a red circle moving left", frames=4, steps=2, height=32, width=48)


@pytest.fixture(scope="module")
def models(base: BaseModel, trained: dict[str, Path]) -> AnimationModels:
    return AnimationModels(base=base, motion_module=trained["motion-module"])


def bytes_of(*modules: torch.nn.Module) -> int:
    """Of all parameters, shared ones once."""
    found = {p.data_ptr(): p.numel() * p.element_size() for module in modules for p in module.parameters()}
    return sum(found.values())


def test_one_unet_is_held(models: AnimationModels) -> None:
    animator = Animator(models, "cpu")
    image, video = animator._base.unet, animator._video
    assert video is not None
    motion = sum(p.numel() * 4 for name, p in video.named_parameters() if ".motion_modules." in name)
    assert bytes_of(image, video) == bytes_of(image) + motion
    half = Animator(models, "cpu", "bf16")
    assert half._video is not None
    assert bytes_of(half._base.unet, half._video) == bytes_of(image, video) // 2


def test_a_domain_adapter_reaches_both_models_and_leaves_both(
    models: AnimationModels, base: BaseModel, trained: dict[str, Path]
) -> None:
    """The pictures of the image model with the adapter, with and without a motion module beside it."""
    adapter = WeightedFile(path=trained["domain-adapter"])
    alone = Animator(AnimationModels(base=base, domain_adapter=adapter), "cpu").images(CONFIG, 2)
    both = Animator(models.model_copy(update={"domain_adapter": adapter}), "cpu")
    assert np.array_equal(both.images(CONFIG, 2), alone)
    both.use(models)
    plain = Animator(AnimationModels(base=base), "cpu").images(CONFIG, 2)
    assert np.array_equal(both.images(CONFIG, 2), plain)
    assert not np.array_equal(plain, alone)


def test_auto_is_fp16_on_cuda_and_fp32_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    monkeypatch.setattr("components.animate.config.pick_device", lambda device: torch.device("cuda"))
    assert resolve_precision("auto", "auto") == "fp16"
    assert resolve_precision("bf16", "auto") == "bf16"


def test_fp32_keeps_its_identity_and_another_precision_has_its_own() -> None:
    assert "precision" not in CONFIG.identity()
    prints = {CONFIG.replace(precision=p).fingerprint() for p in ("auto", "fp32")}
    assert prints == {CONFIG.fingerprint()}
    assert CONFIG.replace(precision="fp16").fingerprint() not in prints


def test_the_precision_is_part_of_a_clips_record(models: AnimationModels, tmp_path: Path) -> None:
    made = animate(CONFIG, models, tmp_path / "fp32", "cpu")
    half = animate(CONFIG.replace(precision="bf16"), models, tmp_path / "bf16", "cpu")
    for artifact, precision in ((made, "fp32"), (half, "bf16")):
        assert json.loads((artifact.folder / "animation.json").read_text())["precision"] == precision
        assert artifact.config["animation"]["precision"] == precision
    assert made.fingerprint != half.fingerprint


def test_bf16_shows_nearly_the_same(models: AnimationModels) -> None:
    exact = Animator(models, "cpu").frames(CONFIG).astype(float)
    half = Animator(models, "cpu", "bf16").frames(CONFIG).astype(float)
    assert half.shape == exact.shape
    assert np.abs(half - exact).mean() < 6
    assert not np.array_equal(half, exact)


def test_a_vae_that_overflows_in_fp16_decodes_in_fp32(models: AnimationModels, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Animator(models, "cpu")._base
    latents = torch.randn(3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    base.vae.to(torch.float16)
    decode, used = base.vae.decode, []

    def overflow(z: torch.Tensor, **options: Any) -> Any:
        used.append(z.dtype)
        if z.dtype == torch.float16:
            return (torch.full((len(z), 3, z.shape[2] * 4, z.shape[3] * 4), torch.inf),)
        return decode(z, **options)

    monkeypatch.setattr(base.vae, "decode", overflow)
    pixels = sampling.decode(base, latents.half())
    assert used == [torch.float16, torch.float32]
    assert base.vae.dtype == torch.float16, "the next clip begins as this one did"
    assert pixels.std() > 1


def test_latents_that_are_not_finite_are_an_error(models: AnimationModels, monkeypatch: pytest.MonkeyPatch) -> None:
    animator = Animator(models, "cpu")
    monkeypatch.setattr(
        "components.animate.animator.denoise", lambda *args, **options: torch.full((1, 4, 4, 8, 12), torch.nan)
    )
    with pytest.raises(WorkError, match=r"not finite in fp32.*animation.precision"):
        animator.frames(CONFIG)


def forgetful(animator: Animator, monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The video model has no memory for its first calls, as a GPU would say it."""
    video = animator._video
    assert video is not None
    forward, calls = video.forward, []

    def run_out(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(*args, **options)

    monkeypatch.setattr(video, "forward", run_out)
    return calls


def test_denoising_is_tried_again_without_the_vae(models: AnimationModels, monkeypatch: pytest.MonkeyPatch) -> None:
    animator = Animator(models, "cpu")
    for scheduler in ("ddim", "euler-ancestral"):  # one of them draws random numbers on the way
        config = CONFIG.replace(scheduler=scheduler)
        expected = animator.frames(config)
        with monkeypatch.context() as patch:
            forgetful(animator, patch, times=1)
            assert np.array_equal(animator.frames(config), expected), scheduler


def test_an_animation_that_is_too_large_is_told_and_not_sealed(
    models: AnimationModels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    animator = Animator(models, "cpu")
    forgetful(animator, monkeypatch, times=99)
    with pytest.raises(TransientError) as caught:
        animate(CONFIG, models, tmp_path / "a", "cpu", animator)
    assert "Out of memory while denoising 4 frames of 48x32 pixels in fp32" in caught.value.found
    assert "GiB are free on cpu now" in caught.value.meaning
    assert "animation.frames" in caught.value.next_step
    assert not (tmp_path / "a").exists()


def test_decoding_takes_fewer_images_at_a_time(models: AnimationModels, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Animator(models, "cpu")._base
    latents = torch.randn(5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    one_by_one = np.concatenate([sampling.decode(base, latent[None]) for latent in latents])
    decode, sizes = base.vae.decode, []

    def limited(z: torch.Tensor, **options: Any) -> Any:
        if len(z) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(z))
        return decode(z, **options)

    monkeypatch.setattr(base.vae, "decode", limited)
    assert np.array_equal(sampling.decode(base, latents), one_by_one)
    assert sizes == [1] * 5
    monkeypatch.setattr(base.vae, "decode", lambda z, **options: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(TransientError, match="Out of memory while decoding one image"):
        sampling.decode(base, latents)
