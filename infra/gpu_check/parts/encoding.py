"""How fast the VAE encodes: the cache's encoder against a bare loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from components.bench.models import SIZES, random_sd_vae
from data_prep.encode.encode import Encoder, UInt8, batch_of, dtype_of
from infra.gpu_check.context import Context
from infra.gpu_check.parts.basics import synchronize
from infra.gpu_check.rows import Row

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHARE = 0.85
"""Of the bare loop's rate."""


def encoding(context: Context) -> Iterator[Row]:
    """Frames a second, from clips in the host's memory to latents there; and of the VAE alone, on frames on the device
    already."""
    vae, size = vae_of(context), context.sizes.size
    batch = batch_of(0, size, context.device.type)
    clips = drawn(context)
    encoder = Encoder(vae, batch)
    encoder.warm(size)
    rate = _rate(context, lambda: sum(len(latents.mean) for _, latents in encoder.stream(enumerate(clips))))
    yield Row("VAE encoding: ours", rate, "frames/s", note=f"{batch} frames at a time")
    bare = _rate(context, bare_loop(context, vae, batch))
    yield Row("VAE encoding: bare loop", bare, "frames/s")
    yield context.at_least(SHARE, "VAE encoding: ours of the bare loop", rate / bare)


def vae_of(context: Context) -> AutoencoderKL:
    """As a cache's is prepared, with random weights."""
    device = context.device
    torch.manual_seed(0)
    with device:
        vae = random_sd_vae(SIZES[context.sizes.model].vae_widths)
    dtype = dtype_of("auto", device.type)
    return vae.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)


def drawn(context: Context) -> list[UInt8]:
    """Clips (F, H, W, 3) of noise."""
    sizes, chance = context.sizes, np.random.default_rng(0)
    shape = (sizes.vae_clips, sizes.frames, sizes.size, sizes.size, 3)
    return list(chance.integers(0, 256, shape, np.uint8))


class bare_loop:  # noqa: N801  # called like the function that it stands for
    """Encodes one batch again and again, as many frames as the clips have."""

    def __init__(self, context: Context, vae: AutoencoderKL, batch: int) -> None:
        size, sizes = context.sizes.size, context.sizes
        pixels = torch.randn(batch, 3, size, size, device=context.device, dtype=vae.dtype).clamp(-1, 1)
        self._pixels = pixels.to(memory_format=torch.channels_last)
        self._vae, self._times = vae, -(-sizes.vae_clips * sizes.frames // batch)
        self.once()

    @torch.inference_mode()
    def once(self) -> None:
        self._vae.encode(self._pixels).latent_dist.mean.half()

    def __call__(self) -> int:
        for _ in range(self._times):
            self.once()
        return self._times * len(self._pixels)


def _rate(context: Context, work: Callable[[], int]) -> float:
    """Frames a second of work that tells how many it did."""
    synchronize(context.device)
    began, done = time.perf_counter(), 0
    while True:
        done += work()
        synchronize(context.device)
        took = time.perf_counter() - began
        if took > context.sizes.timing_seconds:
            return done / took
