"""Captions to text states, each distinct caption encoded once. L text positions, D text width."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

KEPT = 4096  # captions; about 1 GB of SD 1.5's states


class TextStates:
    """Last hidden states of CLIP, padded to the tokenizer's length, as Stable Diffusion conditions on them."""

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder.to(device)
        self._device = device
        self._states: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """(B, L, D), float32, on the device."""
        return torch.cat([self._one(caption) for caption in captions])

    def _one(self, caption: str) -> Tensor:
        states = self._states.get(caption)
        if states is None:
            states = self._encode(caption)
            self._states[caption] = states
            if len(self._states) > KEPT:
                self._states.popitem(last=False)
        self._states.move_to_end(caption)
        return states

    @torch.no_grad()
    def _encode(self, caption: str) -> Tensor:
        # One caption at a time: in a batch the last bits depend on its neighbours, and a resumed run would differ.
        ids = self._tokenizer(
            caption,
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )["input_ids"]
        return torch.as_tensor(self._encoder(ids.to(self._device)).last_hidden_state).float()
