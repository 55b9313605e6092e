"""Captions to text states, each distinct caption encoded once. B captions, L text positions, D text width."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infra.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

KEPT_BYTES = 1 << 28  # 1,100 captions of SD 1.5


def check_embeddings(caption: str, cached_LD: Tensor, own_LD: Tensor) -> None:
    """
    Raises:
        UserError: the cache's state of a caption, fp16 once, is not what this base model's text encoder makes of it.
    """
    own = own_LD.cpu()
    if cached_LD.shape != own.shape or not torch.allclose(cached_LD.float(), own, rtol=0.02, atol=0.02):
        raise UserError(
            f"The cache's embedding of {caption!r} is not what the base model's text encoder makes of it.",
            "It was made by another text encoder, and would condition this model on noise.",
            "Build the cache with this base model, or without caption_embeddings.",
        )


class TextStates:
    """Last hidden states of CLIP, padded to the tokenizer's length, as Stable Diffusion conditions on them."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder.to(device)
        self._device = device
        self._states: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D), float32, on the device."""
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._states]
        # In a batch the last bits depend on a caption's neighbours, and a resumed run would differ; on the CPU each is
        # encoded by itself.
        at_once = max(1, len(missing)) if self._device.type == "cuda" else 1
        for start in range(0, len(missing), at_once):
            part = missing[start : start + at_once]
            self._states.update(zip(part, self._encode(part), strict=True))
        for caption in captions:
            self._states.move_to_end(caption)
        found = torch.stack([self._states[caption] for caption in captions])
        while len(self._states) * found[0].nbytes > KEPT_BYTES:
            self._states.popitem(last=False)
        return found

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
