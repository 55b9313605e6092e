"""The trainer's input: batches of clips in latent space.

B batch, F frames, C channels, h w latents, L tokens of a caption, D width of its embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class ClipBatch:
    """`latents_BCFhw` float32, means of the VAE's posteriors or draws from them, not scaled; one caption and one id a
    clip."""

    latents_BCFhw: Tensor
    captions: list[str]
    clip_ids: list[str]
    caption_embeddings_BLD: Tensor | None = None
    """float32 last hidden states of the text encoder, where the source has them."""


class BatchSource(Protocol):
    """A set of clips, encoded by the VAE of hash `vae_sha256` (see `components.base.model.vae_sha256`)."""

    @property
    def vae_sha256(self) -> str: ...

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        """Endless. The n-th batch is a function of (seed, start_step + n) alone; rank r gets the r-th of `world_size`
        equal parts. `batch_size` is that of all ranks together."""
        ...

    def held_out(self, count: int, frames: int) -> ClipBatch:
        """A fixed set of clips and windows that `batches` never draws."""
        ...
