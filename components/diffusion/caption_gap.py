"""The caption gap: what a word of the caption is worth to an image model, by noise level.

A motion module has no text input of its own (paper sec. 4.2): a word reaches it only through what the image model does
differently for it. The gap is how much larger the denoising error gets when the word is swapped for another. Where it
is zero, the image model does not see the word, and no motion module on it can follow it.

N stills, C channels, h w latents, L text positions, D text width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.diffusion.noise import Prediction
from components.diffusion.objective import Predict, draw, prediction_errors

Float = NDArray[np.floating[Any]]

TIMESTEPS_MEASURED = (100, 300, 500, 700, 850, 950)
SEED = 0
BATCH = 16
RESAMPLES = 1000


@dataclass(frozen=True)
class CaptionGap:
    """The gap of a group of words at one timestep, over the stills whose captions have one of the words."""

    words: tuple[str, ...]
    timestep: int
    gap: float
    """Relative growth of the mean squared error: 0.1 is a tenth more."""
    low: float
    """Of the 95 % interval, by resampling the stills."""
    high: float
    stills: int

    def as_row(self) -> dict[str, object]:
        return asdict(self)


def swap_word(caption: str, words: Sequence[str]) -> str | None:
    """The caption with its one of `words` replaced by the next of them, the last by the first; None if it has none.

    Whole words count, in any case; a longer one is looked for before one that is part of it.
    """
    for word in sorted(words, key=len, reverse=True):
        found = re.search(rf"\b{re.escape(word)}\b", caption, re.IGNORECASE)
        if found:
            other = words[(list(words).index(word) + 1) % len(words)]
            return caption[: found.start()] + other + caption[found.end() :]
    return None


@torch.no_grad()
def caption_gap(
    predict: Predict,
    encode: Callable[[Sequence[str]], Tensor],
    latents_NChw: Tensor,
    captions: Sequence[str],
    words: Sequence[str],
    alpha_bar: Tensor,
    prediction: Prediction = "epsilon",
    timesteps: Sequence[int] = TIMESTEPS_MEASURED,
) -> list[CaptionGap]:
    """The gap of a group of words at each timestep, with the same noise for both captions; empty if no caption has one.

    `predict` is an `image_predictor`, `encode` maps captions to states (B, L, D), and the latents are scaled.
    """
    pairs = [(index, swapped) for index, text in enumerate(captions) if (swapped := swap_word(text, words)) is not None]
    if not pairs:
        return []
    chosen = [index for index, _ in pairs]
    z_0 = latents_NChw[chosen].unsqueeze(2)
    eps = draw(chosen, z_0.shape[1:], SEED).eps_BCFhw.to(z_0.device)
    found = []
    for timestep in timesteps:
        own: list[Tensor] = []
        other: list[Tensor] = []
        for first in range(0, len(pairs), BATCH):
            part = slice(first, first + BATCH)
            t_B = torch.full((len(chosen[part]),), timestep, device=z_0.device)
            for errors, texts in (
                (own, [captions[i] for i in chosen[part]]),
                (other, [text for _, text in pairs[part]]),
            ):
                states = encode(texts)
                errors.append(prediction_errors(predict, z_0[part], states, eps[part], t_B, alpha_bar, prediction))
        found.append(_gap(tuple(words), timestep, torch.cat(own).cpu().numpy(), torch.cat(other).cpu().numpy()))
    return found


def _gap(words: tuple[str, ...], timestep: int, own: Float, other: Float) -> CaptionGap:
    rows = np.random.default_rng(SEED).integers(len(own), size=(RESAMPLES, len(own)))
    resampled = other[rows].mean(axis=1) / own[rows].mean(axis=1) - 1
    low, high = np.quantile(resampled, [0.025, 0.975])
    return CaptionGap(words, timestep, float(other.mean() / own.mean() - 1), float(low), float(high), len(own))
