"""Sampling with diffusers' pipelines, from noise to pixels. N images, F frames, h w latents, H W pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.errors import TransientError, WorkError
from infra.memory import free_memory, is_out_of_memory, memory_of
from infra.quiet import quiet
from infra.video import UInt8

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, SchedulerMixin, StableDiffusionPipeline

DECODED_PIXELS_MAX = 16 * 256 * 256  # per batch of the VAE, whose last layers take about 2 GiB for these


def image_pipeline(
    base: StableDiffusionPipeline, unet: nn.Module, scheduler: SchedulerMixin
) -> StableDiffusionPipeline:
    """A new pipeline around the parts of the base model. One per call, since a scheduler has state."""
    from diffusers import StableDiffusionPipeline

    with quiet():
        return StableDiffusionPipeline(
            **_parts(base), unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip


def video_pipeline(
    base: StableDiffusionPipeline, unet: nn.Module, scheduler: SchedulerMixin, controlnets: Sequence[nn.Module] = ()
) -> AnimateDiffPipeline:
    """As `image_pipeline`, for a `UNetMotionModel` and optional ControlNets."""
    from diffusers import AnimateDiffControlNetPipeline, AnimateDiffPipeline

    parts = {**_parts(base), "unet": unet, "scheduler": scheduler, "motion_adapter": None}
    with quiet():
        if controlnets:
            return AnimateDiffControlNetPipeline(**parts, controlnet=list(controlnets))
        return AnimateDiffPipeline(**parts)


def denoise(
    pipeline: Any,
    noise: Tensor,
    prompt: str,
    negative_prompt: str,
    steps: int,
    guidance_scale: float,
    on_step: Callable[[], object] = lambda: None,
    **extra: Any,
) -> Tensor:
    """The denoised latents. The pipeline scales the noise as its scheduler needs it. `on_step` is called after every
    step."""

    def on_step_end(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return values

    factor = pipeline.vae_scale_factor
    pipeline.set_progress_bar_config(disable=True)
    with quiet():
        return torch.as_tensor(
            pipeline(
                prompt=prompt,
                negative_prompt=negative_prompt,
                height=noise.shape[-2] * factor,
                width=noise.shape[-1] * factor,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                latents=noise,
                output_type="latent",
                return_dict=False,
                callback_on_step_end=on_step_end,
                **extra,
            )[0]
        )


def decode(base: StableDiffusionPipeline, latents_NChw: Tensor) -> UInt8:
    """uint8 (N, H, W, 3), decoded in batches of at most `DECODED_PIXELS_MAX` pixels, of half as many where memory runs
    out. A VAE that overflows in fp16, as that of SD's first release does, decodes in fp32.

    Raises:
        TransientError: a single image needs more memory than there is.
    """
    pixels = latents_NChw[0, 0].numel() * base.vae_scale_factor**2
    count = min(len(latents_NChw), max(1, DECODED_PIXELS_MAX // pixels))
    while True:
        try:
            return _decode(base.vae, latents_NChw, count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        if count == 1:
            raise TransientError(
                f"Out of memory while decoding one image of {pixels:,} pixels.",
                f"{memory_of(latents_NChw.device)} now.",
                "Lower animation.height and width, or free memory on the device.",
            )
        count //= 2


@torch.no_grad()
def _decode(vae: Any, latents_NChw: Tensor, count: int) -> UInt8:
    own_dtype = vae.dtype
    decoded: list[UInt8] = []
    try:
        while len(decoded) * count < len(latents_NChw):
            batch = latents_NChw[len(decoded) * count :][:count].to(vae.dtype)
            images = vae.decode(batch / vae.config.scaling_factor, return_dict=False)[0]
            if not bool(torch.isfinite(images).all()):
                if vae.dtype != torch.float16:
                    raise WorkError(
                        f"The VAE decodes to numbers that are not finite, in {vae.dtype}.",
                        "The frames would be black.",
                        "Check the weights with `animateflow weights info`, or set animation.precision=fp32.",
                    )
                with quiet():  # of diffusers' remark on casts
                    vae.to(torch.float32)
                decoded = []  # the whole clip in one precision
                continue
            scaled = (images.float() / 2 + 0.5).clamp(0, 1) * 255
            decoded.append(scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    finally:
        if vae.dtype != own_dtype:
            with quiet():
                vae.to(own_dtype)
    return np.concatenate(decoded)


def _parts(base: StableDiffusionPipeline) -> dict[str, Any]:
    return {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
