"""LoRAs of image models in kohya's format, what Civitai shares: W += scale · (alpha / rank) · up @ down.

A tensor is named `lora_unet_<layer with _ for .>.lora_down.weight` (`lora_te_…` in the text encoder). They are folded
into the weights here rather than put on by diffusers, which warns of what it does not recognise and loads the rest, and
which loses alpha in the text encoder since transformers 5 (seen with diffusers 0.42.1: the effect is rank/alpha times
too strong). A model with its LoRAs is then a plain model, and every tensor of the file is used or named in an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from components.files.weight_files import check_numbers, read_header_of, read_tensors
from infra.errors import UserError, listed

KIND = "kohya-lora"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


def fold_lora(unet: nn.Module, text_encoder: nn.Module, path: Path, scale: float) -> None:
    """Adds the LoRA to the weights, in place.

    Raises:
        UserError: not a LoRA in kohya's format (LoHa, LoKr and DoRA are not), or layers that the model lacks or has in
            other sizes.
    """
    pairs = _read(path)
    layers = _layers(unet, text_encoder)
    if absent := sorted(name for name in pairs if name not in layers):
        raise UserError(
            f"Of the {len(pairs)} layers in {path}, {len(pairs) - len(absent)} exist in the base model; these do not: "
            f"{listed(absent)}.",
            "It was made for another model.",
            "Pass a LoRA made for Stable Diffusion 1.x.",
        )
    shapes = {name: _shape(path, name, down, up) for name, (down, up, _) in pairs.items()}
    wrong = [
        f"{name} is {shape} and the model's is {tuple(layers[name].shape)}"
        for name, shape in shapes.items()
        if _sides(shape) != _sides(layers[name].shape)
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit the base model: {listed(wrong)}.",
            "It was trained on a model of other widths.",
            "Pass a LoRA made for this base model.",
        )
    with torch.no_grad():
        for name, (down, up, alpha) in pairs.items():
            factor = 1.0 if alpha is None else float(alpha) / down.shape[0]
            delta = factor * (up.flatten(1) @ down.flatten(1))
            layers[name] += (scale * delta).view_as(layers[name])


def _read(path: Path) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Layer name to (down, up, alpha), the matrices in float32; without an alpha it is the rank."""
    tensors = read_tensors(read_header_of(path, KIND, beside=r".*\.alpha"))
    parts = {name: re.fullmatch(r"(.+?)(\.lora_down\.weight|\.lora_up\.weight|\.alpha)", name) for name in tensors}
    layers = {match[1] for match in parts.values() if match}
    strange = [name for name, match in parts.items() if match is None]
    strange += [layer + end for layer in layers for end in (DOWN, UP) if layer + end not in tensors]
    if strange:
        raise UserError(
            f"{path} has unknown or missing tensors: {listed(sorted(strange))}.",
            "Using only the rest would change the model in a way that its author did not mean.",
            "Pass a plain LoRA (lora_down, lora_up, alpha).",
        )
    alphas = {name: tensor for name, tensor in tensors.items() if name.endswith(ALPHA)}
    if odd := [name for name, alpha in alphas.items() if alpha.numel() != 1 or alpha.is_complex()]:
        raise UserError(f"{path} holds {odd[0]}, which is not one number.", "It is damaged.", "Download it again.")
    check_numbers(path, {name: alpha.float() for name, alpha in alphas.items()})
    return {
        layer: (tensors[layer + DOWN].float(), tensors[layer + UP].float(), alphas.get(layer + ALPHA))
        for layer in sorted(layers)
    }


def _shape(path: Path, name: str, down: Tensor, up: Tensor) -> tuple[int, ...]:
    """Of their product: (out, in) of a linear layer or 1x1 convolution, (out, in, k, k) of a larger one whose up is
    1x1."""
    fits = min(down.ndim, up.ndim) >= 2 and down.numel() and up.numel() == up.shape[0] * down.shape[0]
    if not fits:
        raise UserError(
            f"{path} holds {name} as {tuple(up.shape)} times {tuple(down.shape)}.",
            "These matrices have no product.",
            "Download it again.",
        )
    return up.shape[0], *down.shape[1:]


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A linear layer and a 1x1 convolution are the same."""
    return tuple(shape[:2]) if all(side == 1 for side in shape[2:]) else tuple(shape)


def _layers(unet: nn.Module, text_encoder: nn.Module) -> Mapping[str, Tensor]:
    """Weights by the names that kohya's trainer gives their layers."""
    found = {}
    for prefix, module in (("lora_unet_", unet), ("lora_te_text_model_", text_encoder)):
        for name, part in module.named_modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                plain = name.removeprefix("text_model.").replace(".", "_")
                found[prefix + plain] = cast(Any, part.weight)
    return found
