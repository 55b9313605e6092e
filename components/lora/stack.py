"""LoRAs on a live model: added, re-weighted and removed while it stays in memory, and gone without a trace.

W = W₀ + Σ scale · up @ down, always computed anew from the W₀ that was there before the first LoRA; so any order of
additions and removals that ends in the same set ends in the same bits, and an empty set is the original tensors
themselves. Costs nothing while animating, and the memory of the touched W₀.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from components.files.kinds import KINDS
from components.lora.lora import LAYERS, LoraWeights
from infra.errors import UserError, listed


class LoraStack:
    """Domain adapters and MotionLoRAs on one UNet, each under a name."""

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._original: dict[str, Tensor] = {}
        self._loras: dict[str, tuple[LoraWeights, float]] = {}

    @property
    def scales(self) -> dict[str, float]:
        """Of the LoRAs that are on, by name."""
        return {name: scale for name, (_, scale) in self._loras.items()}

    def add(self, name: str, lora: LoraWeights, scale: float = 1.0) -> None:
        """Puts a LoRA on, or replaces the one of this name; effects add up (paper sec. 4.3).

        Raises:
            UserError: it does not fit the model; nothing has changed then.
        """
        check_fits(lora, self._unet)
        before = self._loras.get(name)
        self._loras[name] = (lora, scale)
        self._apply({*lora.layers, *(before[0].layers if before else ())})

    def set_scale(self, name: str, scale: float) -> None:
        """Re-weights a LoRA that is on: alpha of a domain adapter (paper eq. 4)."""
        lora, _ = self._loras[name]
        self._loras[name] = (lora, scale)
        self._apply(set(lora.layers))

    def remove(self, name: str) -> None:
        """Takes a LoRA off; layers that no other touches get back the very tensors they had."""
        lora, _ = self._loras.pop(name)
        self._apply(set(lora.layers))

    def clear(self) -> None:
        """Takes all off."""
        for name in list(self._loras):
            self.remove(name)

    @contextmanager
    def without(self) -> Iterator[None]:
        """The model as it is without them, inside the block."""
        before = dict(self._loras)
        self.clear()
        try:
            yield
        finally:
            for name, (lora, scale) in before.items():
                self.add(name, lora, scale)

    @torch.no_grad()
    def _apply(self, layers: set[str]) -> None:
        for layer in sorted(layers):
            weight = cast(nn.Parameter, self._unet.get_submodule(layer).weight)
            original = self._original.setdefault(layer, weight.data)
            active = [(lora, scale) for lora, scale in self._loras.values() if layer in lora.layers and scale]
            if not active:
                weight.data = original.to(weight.device)
            else:
                total = original.to(torch.float32, copy=True)
                for lora, scale in active:
                    total += (scale * lora.delta(layer)).to(total.device)
                weight.data = total.to(weight.device, original.dtype)
            if not any(layer in lora.layers for lora, _ in self._loras.values()):
                del self._original[layer]


def check_fits(lora: LoraWeights, unet: nn.Module) -> None:
    """Every pair has its layer, of its size, and every layer of the kind has its pair.

    Raises:
        UserError: it does not fit; the message lists what differs.
    """
    layers = {
        name: tuple(part.weight.shape)
        for name, part in unet.named_modules()
        if isinstance(part, nn.Linear) and re.fullmatch(LAYERS[lora.kind], name)
    }
    pairs = {layer: lora.pair(layer) for layer in sorted(lora.layers)}
    shapes = {layer: (up.shape[0], down.shape[1]) for layer, (down, up) in pairs.items()}
    extra, absent = [name for name in shapes if name not in layers], [name for name in layers if name not in shapes]
    mid = [name for name in (*extra, *absent) if name.startswith("mid_block.")]
    if lora.kind == "motion-lora" and mid and len(mid) == len(extra) + len(absent):
        is_v2 = "The MotionLoRA" if extra else "The motion module"
        raise UserError(
            f"{lora.path} is a MotionLoRA {'with' if extra else 'without'} layers in the mid block, and the motion "
            f"module has {'none' if extra else 'some'} there.",
            f"{is_v2} is of version v2 and the other is not; the mid block carries most of what a v2 MotionLoRA does.",
            f"Use it with a {'v2' if extra else 'v1 or v3'} motion module (`animateflow weights info` shows which).",
        )
    wrong = [f"{name} is not in the model" for name in extra]
    wrong += [f"{name} has no weights in the file" for name in absent]
    wrong += [
        f"{name} is {shape} in the file and {layers[name]} in the model"
        for name, shape in shapes.items()
        if name in layers and layers[name] != shape
    ]
    if wrong:
        raise UserError(
            f"{lora.path} does not fit the model: {listed(wrong)}.",
            f"It is {KINDS[lora.kind]} made with another base model or motion module.",
            "Use it with the one it was trained on (`animateflow weights info` shows which).",
        )
