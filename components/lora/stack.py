"""LoRAs on a model in memory: added, re-scaled and removed at any time.

W = W₀ + Σ scale · up @ down is always computed from W₀, the weights before the first LoRA. So the order of additions
and removals does not change a bit of the result, and removing all LoRAs brings the original tensors back. Inference
takes no extra time. W₀ of the changed layers stays in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from components.files.kinds import KINDS
from components.lora.lora import TARGET_MODULES, LoraWeights
from infra.errors import UserError, listed


class LoraStack:
    """The domain adapters and MotionLoRAs on one UNet, each under a name."""

    def __init__(self, unet: nn.Module) -> None:
        self._unet = unet
        self._original: dict[str, Tensor] = {}
        self._loras: dict[str, tuple[LoraWeights, float]] = {}

    @property
    def scales(self) -> dict[str, float]:
        """Name to scale."""
        return {name: scale for name, (_, scale) in self._loras.items()}

    def add(self, name: str, lora: LoraWeights, scale: float = 1.0) -> None:
        """Adds a LoRA, or replaces the one of this name. Effects add up (paper sec. 4.3).

        Raises:
            UserError: it does not fit the model, which is then unchanged.
        """
        check_fits(lora, self._unet)
        replaced = self._loras.get(name)
        self._loras[name] = (lora, scale)
        self._update({*lora.layers, *(replaced[0].layers if replaced else ())})

    def set_scale(self, name: str, scale: float) -> None:
        """Sets the scale of a LoRA; for a domain adapter it is alpha (paper eq. 4)."""
        lora, _ = self._loras[name]
        self._loras[name] = (lora, scale)
        self._update(set(lora.layers))

    def remove(self, name: str) -> None:
        """Removes a LoRA. Layers without any other LoRA get their original tensors back."""
        lora, _ = self._loras.pop(name)
        self._update(set(lora.layers))

    def clear(self) -> None:
        """Removes all."""
        for name in list(self._loras):
            self.remove(name)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside the block the model is without its LoRAs."""
        before = dict(self._loras)
        self.clear()
        try:
            yield
        finally:
            for name, (lora, scale) in before.items():
                self.add(name, lora, scale)

    @torch.no_grad()
    def _update(self, layers: set[str]) -> None:
        """Computes the weights of these layers anew."""
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
    """Checks that the LoRA has matrices for exactly the layers of its kind in the model, in their sizes.

    Raises:
        UserError: it has not; the message lists what differs.
    """
    in_model = {
        name: tuple(module.weight.shape)
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(TARGET_MODULES[lora.kind], name)
    }
    in_file = {layer: lora.delta_shape(layer) for layer in sorted(lora.layers)}
    unknown, missing = [name for name in in_file if name not in in_model], [n for n in in_model if n not in in_file]
    if lora.kind == "motion-lora":
        _check_mid_block(lora, unknown, missing)
    wrong = [f"{name} is not in the model" for name in unknown]
    wrong += [f"{name} has no weights in the file" for name in missing]
    wrong += [
        f"{name} is {shape} in the file and {in_model[name]} in the model"
        for name, shape in in_file.items()
        if name in in_model and in_model[name] != shape
    ]
    if wrong:
        raise UserError(
            f"{lora.path} does not fit the model: {listed(wrong)}.",
            f"It is {KINDS[lora.kind]} made with another base model or motion module.",
            "Use it with the one it was trained on (`animateflow weights info` shows which).",
        )


def _check_mid_block(lora: LoraWeights, unknown: list[str], missing: list[str]) -> None:
    """
    Raises:
        UserError: the MotionLoRA and the motion module differ in the mid block only, so that one of the two is v2.
    """
    differing = [*unknown, *missing]
    if not differing or not all(name.startswith("mid_block.") for name in differing):
        return
    if unknown:
        found = f"{lora.path} is a MotionLoRA with layers in the mid block, and the motion module has none there."
        meaning, use_with = "The MotionLoRA is for version v2 and the motion module is not v2", "v2"
    else:
        found = f"{lora.path} is a MotionLoRA without layers in the mid block, and the motion module has some there."
        meaning, use_with = "The motion module is version v2 and the MotionLoRA is not for v2", "v1 or v3"
    raise UserError(
        found,
        f"{meaning}. Most of the effect of a v2 MotionLoRA is in the mid block.",
        f"Use it with a {use_with} motion module (`animateflow weights info` shows which).",
    )
