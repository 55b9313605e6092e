"""The held-out loss, by timestep band, on clips that training never draws, always with the same noise.

The plain loss says little about motion: a clip whose frames are shuffled has the same pictures. The *frame-shuffle gap*
is how much better the model predicts frames in their order than out of it; it is zero for a model without motion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from components.diffusion.noise import TIMESTEPS
from components.diffusion.objective import draw
from components.train.batch import ClipBatch
from components.train.step import Stepper

BANDS = 4
SEED = 0


@dataclass(frozen=True)
class Measured:
    """Held-out losses by timestep band: `bands` of the trained weights, `averaged` of their EMA, if there is one.
    `shuffle_gap` is that of the weights that are saved; None for single frames."""

    bands: dict[str, float]
    averaged: dict[str, float] | None
    shuffle_gap: float | None

    @property
    def saved(self) -> dict[str, float]:
        """Losses of the weights that are saved."""
        return self.bands if self.averaged is None else self.averaged

    @property
    def mean(self) -> float:
        """Mean of `saved` over the bands."""
        return sum(self.saved.values()) / len(self.saved)


@torch.no_grad()
def measure(stepper: Stepper, clips: ClipBatch) -> Measured:
    """Measures the losses of `clips`; weights and optimizer are unchanged afterwards."""
    bands = _bands(stepper, clips)
    with averaged_weights(stepper):
        return _measure_saved(stepper, clips, bands)


@contextmanager
def averaged_weights(stepper: Stepper) -> Iterator[None]:
    """Inside the block the model has the weights that are saved: their EMA, if there is one."""
    if stepper.ema is None:
        yield
        return
    live = [parameter.detach().clone() for parameter in stepper.parameters]
    stepper.set_parameters(stepper.ema)
    try:
        yield
    finally:
        stepper.set_parameters(live)


def _measure_saved(stepper: Stepper, clips: ClipBatch, bands: dict[str, float]) -> Measured:
    averaged = None if stepper.ema is None else _bands(stepper, clips)
    gap = None
    if clips.latents_BCFhw.shape[2] > 1:
        order = torch.stack([_shuffle(clips.latents_BCFhw.shape[2], clip) for clip in range(len(clips.captions))])
        index = order.view(len(order), 1, -1, 1, 1).expand_as(clips.latents_BCFhw)
        shuffled = ClipBatch(clips.latents_BCFhw.gather(2, index), clips.captions, clips.clip_ids)
        saved = averaged or bands
        gap = (sum(_bands(stepper, shuffled).values()) - sum(saved.values())) / BANDS
    return Measured(bands, averaged, gap)


def _bands(stepper: Stepper, clips: ClipBatch) -> dict[str, float]:
    count, size, width = len(clips.captions), stepper.config.batch_size, TIMESTEPS // BANDS
    eps = draw(range(count), clips.latents_BCFhw.shape[1:], SEED).eps_BCFhw
    found = {}
    for band in range(BANDS):
        errors = []
        for i in range(0, count, size):
            part = ClipBatch(clips.latents_BCFhw[i : i + size], clips.captions[i : i + size], [])
            t_B = torch.full((len(part.captions),), band * width + width // 2, device=stepper.process.device)
            errors.append(stepper.errors(part, None, eps[i : i + size], t_B))
        found[f"t {band * width}-{(band + 1) * width - 1}"] = torch.cat(errors).mean().item()
    return found


def _shuffle(frames: int, clip: int) -> torch.Tensor:
    """An order of the frames other than their own, always the same for a clip."""
    generator = torch.Generator().manual_seed(clip)
    order = torch.randperm(frames, generator=generator)
    return order if not torch.equal(order, torch.arange(frames)) else order.roll(1)
