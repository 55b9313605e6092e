"""Captions to hidden states of the text encoder, each distinct caption encoded once.

B captions, L tokens, D text width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infra.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

CACHE_BYTES = 1 << 28  # 1,100 captions of SD 1.5


class CaptionEncoder:
    """Encodes captions as Stable Diffusion does: last hidden states of CLIP, padded to the tokenizer's length. The
    least recently used are dropped from its cache beyond `CACHE_BYTES`."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder.to(device)
        self._device = device
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D), float32, on the device."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._cache]
        # In a batch, the last bits of a result depend on the other captions, so that a resumed training would differ.
        # On the CPU each caption is therefore encoded alone.
        batch_size = max(1, len(missing)) if self._device.type == "cuda" else 1
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            self._cache.update(zip(batch, self._encode(batch), strict=True))
        for caption in captions:
            self._cache.move_to_end(caption)
        states = torch.stack([self._cache[caption] for caption in captions])
        while len(self._cache) * states[0].nbytes > CACHE_BYTES:
            self._cache.popitem(last=False)
        return states

    @torch.no_grad()
    def _encode(self, captions: Sequence[str]) -> Tensor:
        ids = self._tokenizer(
            list(captions),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]
        return torch.as_tensor(self._encoder(ids.to(self._device)).last_hidden_state).float()


def check_embeddings(caption: str, cached_LD: Tensor, own_LD: Tensor) -> None:
    """Checks a caption embedding from a latent cache, fp16, against that of the base model's text encoder.

    Raises:
        UserError: they differ.
    """
    own = own_LD.cpu()
    if cached_LD.shape != own.shape or not torch.allclose(cached_LD.float(), own, rtol=0.02, atol=0.02):
        raise UserError(
            f"The embedding of {caption!r} in the cache differs from that of the base model's text encoder.",
            "It was made by another text encoder. For this base model it is noise.",
            "Build the cache with this base model, or without caption_embeddings.",
        )
