"""LoRAs of image models in kohya's format, as on Civitai: W += scale · (alpha / rank) · up @ down.

A key is `lora_unet_<layer with _ for .>.lora_down.weight`, or `lora_te_…` for the text encoder. The LoRA is fused here
and not by diffusers, for two reasons. diffusers only warns about keys that it does not know; here every tensor is used
or named in an error. And with transformers 5 it loses alpha in the text encoder (seen with diffusers 0.42.1), which
makes the effect rank / alpha times too strong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from components.files.weights import check_numbers, read_header_of_kind, read_tensors
from components.lora.lora import shape_mismatch_error
from infra.errors import UserError, listed

KIND = "kohya-lora"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
Matrices = tuple[Tensor, Tensor, Tensor | None]
"""down and up of one layer in float32, and alpha; without an alpha it is the rank."""


def fuse_lora(unet: nn.Module, text_encoder: nn.Module, path: Path, scale: float) -> None:
    """Adds the LoRA to the weights, in place.

    Raises:
        UserError: not a LoRA in kohya's format (LoHa, LoKr and DoRA are not), or layers that the model does not have or
            has in other sizes.
    """
    loras = _read(path)
    weights = _weights_by_key(unet, text_encoder)
    _check_fits(path, loras, weights)
    with torch.no_grad():
        for key, (down, up, alpha) in loras.items():
            scaling = 1.0 if alpha is None else float(alpha) / down.shape[0]
            delta = scaling * (up.flatten(1) @ down.flatten(1))
            weights[key] += (scale * delta).view_as(weights[key])


def _read(path: Path) -> dict[str, Matrices]:
    """The matrices by layer key (`lora_unet_…`, `lora_te_…`)."""
    tensors = read_tensors(read_header_of_kind(path, KIND, not_weights=r".*\.alpha"))
    matches = {name: re.fullmatch(r"(.+?)(\.lora_down\.weight|\.lora_up\.weight|\.alpha)", name) for name in tensors}
    layers = {match[1] for match in matches.values() if match}
    wrong = [name for name, match in matches.items() if match is None]
    wrong += [layer + matrix for layer in layers for matrix in (DOWN, UP) if layer + matrix not in tensors]
    if wrong:
        raise UserError(
            f"{path} has unknown or missing tensors: {listed(sorted(wrong))}.",
            "Using only the rest would have another effect than its author intended.",
            "Pass a plain LoRA (lora_down, lora_up, alpha).",
        )
    alphas = {name: tensor for name, tensor in tensors.items() if name.endswith(ALPHA)}
    if wrong := [name for name, alpha in alphas.items() if alpha.numel() != 1 or alpha.is_complex()]:
        raise UserError(f"{path} holds {wrong[0]}, which is not one number.", "It is damaged.", "Download it again.")
    check_numbers(path, {name: alpha.float() for name, alpha in alphas.items()})
    return {
        layer: (tensors[layer + DOWN].float(), tensors[layer + UP].float(), alphas.get(layer + ALPHA))
        for layer in sorted(layers)
    }


def _weights_by_key(unet: nn.Module, text_encoder: nn.Module) -> Mapping[str, Tensor]:
    """The weights of all linear layers and convolutions by their layer key in kohya's format."""
    weights = {}
    for prefix, model in (("lora_unet_", unet), ("lora_te_text_model_", text_encoder)):
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                key = prefix + name.removeprefix("text_model.").replace(".", "_")
                weights[key] = cast(Any, module.weight)
    return weights


def _check_fits(path: Path, loras: Mapping[str, Matrices], weights: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: a layer is not in the model or has another size there.
    """
    if unknown := sorted(key for key in loras if key not in weights):
        raise UserError(
            f"Of the {len(loras)} layers in {path}, {len(loras) - len(unknown)} are in the base model; these are not: "
            f"{listed(unknown)}.",
            "It was made for another model.",
            "Pass a LoRA made for Stable Diffusion 1.x.",
        )
    shapes = {key: _product_shape(path, key, down, up) for key, (down, up, _) in loras.items()}
    wrong = [
        f"{key} is {shape} and the model's is {tuple(weights[key].shape)}"
        for key, shape in shapes.items()
        if _as_linear(shape) != _as_linear(weights[key].shape)
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit the base model: {listed(wrong)}.",
            "It was trained on a model of other widths.",
            "Pass a LoRA made for this base model.",
        )


def _product_shape(path: Path, key: str, down: Tensor, up: Tensor) -> tuple[int, ...]:
    """The shape of up @ down: (out, in) for a linear layer, (out, in, k, k) for a convolution, where up is 1x1."""
    matching = min(down.ndim, up.ndim) >= 2 and down.numel() and up.numel() == up.shape[0] * down.shape[0]
    if not matching:
        raise shape_mismatch_error(path, key, down, up)
    return up.shape[0], *down.shape[1:]


def _as_linear(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a 1x1 convolution as that of a linear layer; other shapes as they are."""
    return tuple(shape[:2]) if all(size == 1 for size in shape[2:]) else tuple(shape)
