"""Low-rank adaptation W += scale · up @ down of attention projections, shared by domain adapter and MotionLoRA.

alpha = rank always, so the factor alpha/rank is 1 and a file without metadata means the same everywhere. Names here are
diffusers' (`unet.<layer>.lora_A.weight` is down, `lora_B` is up); `components.formats` knows the original ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from components.formats import lora_from_original
from components.weight_files import KINDS, notes_of, read_weights, write_weights
from infra.errors import UserError

PREFIX = "unet."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
PROJECTIONS = r"(to_q|to_k|to_v|to_out\.0)"
# The two kinds differ by where they sit. A plain list of layer names would hit both.
SPATIAL_LAYERS = rf".*\.attentions\..*\.attn[12]\.{PROJECTIONS}"
TEMPORAL_LAYERS = rf".*motion_modules.*\.attn[12]\.{PROJECTIONS}"
LAYERS = {"domain-adapter": SPATIAL_LAYERS, "motion-lora": TEMPORAL_LAYERS}


@dataclass(frozen=True)
class LoraWeights:
    """`pairs` maps a layer's name in the UNet to (down (r, in), up (out, r)), float32."""

    kind: str
    pairs: dict[str, tuple[Tensor, Tensor]]
    notes: dict[str, str]

    @property
    def rank(self) -> int:
        return next(iter(self.pairs.values()))[0].shape[0]


def add_trainable(unet: nn.Module, kind: str, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Puts a fresh LoRA (up = 0) on the layers of `kind`; returns its parameters by their names in the file.

    Everything else in the UNet is frozen.
    """
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=LAYERS[kind])
        cast(Any, unet).add_adapter(settings, adapter_name=kind)
    unet.requires_grad_(False)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in unet.named_parameters():
        if f".{kind}.weight" in name:
            parameter.requires_grad_(True)
            found[PREFIX + name.replace(f".{kind}.weight", ".weight")] = parameter
    assert found, f"no layer matches {LAYERS[kind]}"
    return found


def pairs_of(state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer name to (down, up), from tensors named as in the file."""
    layers = sorted(name.removeprefix(PREFIX).removesuffix(DOWN) for name in state if name.endswith(DOWN))
    return {layer: (state[PREFIX + layer + DOWN].float(), state[PREFIX + layer + UP].float()) for layer in layers}


def check_fits(lora: LoraWeights, unet: nn.Module, path: Path) -> None:
    """Every pair has its layer, of its size, and every layer of the kind has its pair.

    Raises:
        UserError: it does not fit; the message lists what differs.
    """
    layers = {
        name: tuple(part.weight.shape)
        for name, part in unet.named_modules()
        if isinstance(part, nn.Linear) and re.fullmatch(LAYERS[lora.kind], name)
    }
    wrong = [f"{name} is not in the model" for name in lora.pairs if name not in layers]
    wrong += [f"{name} has no weights in the file" for name in layers if name not in lora.pairs]
    for name, (down, up) in lora.pairs.items():
        shape = (up.shape[0], down.shape[1])
        if name in layers and (layers[name] != shape or down.shape[0] != up.shape[1]):
            wrong.append(f"{name} is {shape} in the file and {layers[name]} in the model")
    if wrong:
        raise UserError(
            f"{path} does not fit the model: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more." if len(wrong) > 3 else "."),
            f"It is {KINDS[lora.kind]} made with another base model or motion module.",
            "Use it with the one it was trained on (`animateflow weights info` shows which).",
        )


@torch.no_grad()
def merge(unet: nn.Module, lora: LoraWeights, scale: float, path: Path) -> None:
    """W += scale · up @ down in place (official animatediff/utils/convert_lora_safetensor_to_diffusers.py)."""
    check_fits(lora, unet, path)
    for name, (down, up) in lora.pairs.items():
        weight = cast(Tensor, unet.get_submodule(name).weight)
        weight += (scale * (up @ down)).to(weight.device, weight.dtype)


def save(path: Path, kind: str, state: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """Writes `state` (named as in the file) with its rank and kind in the metadata."""
    rank = next(tensor.shape[0] for name, tensor in state.items() if name.endswith(DOWN))
    write_weights(path, state, {"stage": kind, "rank": rank, "alpha": rank, **notes})


def load(path: Path, kind: str) -> LoraWeights:
    """A LoRA of this kind from a file in diffusers' or the original format.

    Raises:
        UserError: a file of another kind (the message says which option it belongs to), or not a weight file.
    """
    header, state = read_weights(path)
    if header.kind != kind:
        option = {"motion-lora": "--motion-lora", "domain-adapter": "--domain-adapter"}.get(header.kind)
        if header.kind == "motion-module":
            option = "--motion-module"
        raise UserError(
            f"{path} is {KINDS[header.kind]}, not {KINDS[kind]}.",
            "A domain adapter changes the image layers, a MotionLoRA the temporal ones; neither does the other's work."
            if header.kind in LAYERS
            else "",
            f"Pass it as {option}." if option else f"Pass {KINDS[kind]}.",
        )
    if any("_lora." in name for name in state):
        state = lora_from_original(state)
    # diffusers silently loads nothing where the prefix is missing; we know the file's kind, so we add it.
    state = {name if name.startswith(PREFIX) else PREFIX + name: tensor for name, tensor in state.items()}
    halves = {name[: -len(ending)] for name in state for ending in (DOWN, UP) if name.endswith(ending)}
    expected = {half + ending for half in halves for ending in (DOWN, UP)}
    if odd := sorted(expected.symmetric_difference(state)):
        raise UserError(
            f"{path} has missing or unknown tensors: {', '.join(odd[:3])}{' …' if len(odd) > 3 else ''}.",
            "A LoRA file holds one down and one up matrix for each layer and nothing else.",
            "Make or download it again.",
        )
    return LoraWeights(kind, pairs_of(state), notes_of(header))
