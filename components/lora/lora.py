"""LoRA: W += scale · up @ down on attention projections. Domain adapters and MotionLoRAs are LoRAs.

alpha is always the rank, so that alpha / rank is 1 and a file without metadata has the same strength in every program.
Keys here are diffusers': `unet.<layer>.lora_A.weight` is down, `lora_B` is up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from components.files.kinds import KINDS
from components.files.metadata import to_safetensors_metadata
from components.files.state_dict_keys import DOWN, UNET_PREFIX, UP, lora_to_diffusers
from components.files.weights import Header, read_header_of_kind, read_tensors, write_weights
from infra.errors import UserError, listed

PROJECTIONS = r"(to_q|to_k|to_v|to_out\.0)"
# The kinds differ only in where they are. A list of the projections' names, as peft often has it, would match both.
SPATIAL_ATTENTION = rf".*\.attentions\..*\.attn[12]\.{PROJECTIONS}"
TEMPORAL_ATTENTION = rf".*motion_modules.*\.attn[12]\.{PROJECTIONS}"
TARGET_MODULES = {"domain-adapter": SPATIAL_ATTENTION, "motion-lora": TEMPORAL_ATTENTION}
"""Kind to the regular expression of its layers' names, as peft's `target_modules`."""
PEFT_METADATA_KEY = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraWeights:
    """A loaded LoRA: `state` has diffusers' keys and the file's dtype, `metadata` is the file's `animateflow.*` fields.
    Where another program trained it with an alpha, alpha / rank is multiplied into `up`."""

    path: Path
    kind: str
    state: dict[str, Tensor]
    metadata: dict[str, str]

    @cached_property
    def layers(self) -> frozenset[str]:
        """Layer names in the UNet."""
        return frozenset(
            name.removeprefix(UNET_PREFIX).removesuffix(DOWN) for name in self.state if name.endswith(DOWN)
        )

    @property
    def rank(self) -> int:
        return _rank(self.state)

    @property
    def metadata_with_rank(self) -> dict[str, str]:
        """`metadata` with the rank of the tensors, and alpha equal to it, as they are in `state`."""
        return {**self.metadata, "rank": str(self.rank), "alpha": str(self.rank)}

    def down_and_up(self, layer: str) -> tuple[Tensor, Tensor]:
        """down (r, in) and up (out, r), in the file's dtype."""
        return self.state[UNET_PREFIX + layer + DOWN], self.state[UNET_PREFIX + layer + UP]

    def delta_shape(self, layer: str) -> tuple[int, int]:
        """(out, in)."""
        down, up = self.down_and_up(layer)
        return up.shape[0], down.shape[1]

    def delta(self, layer: str) -> Tensor:
        """up @ down, float32 (out, in)."""
        down, up = self.down_and_up(layer)
        return up.float() @ down.float()


def add_trainable_lora(unet: nn.Module, kind: str, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Adds a new LoRA (up = 0) to the layers of `kind` and freezes everything else in the UNet. Returns its parameters
    by their keys in a file.

    Raises:
        UserError: the model has no such layers (a motion module of convolutions has no attention).
    """
    from peft import LoraConfig

    if not any(re.fullmatch(TARGET_MODULES[kind], name) for name, _ in unet.named_modules()):
        raise UserError(
            f"The model has no layers for {KINDS[kind]}.",
            "It is added to attention layers, and a motion module of temporal convolutions has none.",
            "Train it on a temporal transformer.",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGET_MODULES[kind])
        cast(Any, unet).add_adapter(config, adapter_name=kind)
    unet.requires_grad_(False)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in unet.named_parameters():
        if f".{kind}.weight" in name:
            parameter.requires_grad_(True)
            parameters[UNET_PREFIX + name.replace(f".{kind}.weight", ".weight")] = parameter
    return parameters


def save(path: Path, kind: str, state: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Writes a LoRA in diffusers' format; its kind and rank are added to the `animateflow.*` metadata."""
    rank = _rank(state)
    fields = {"rank": rank, "alpha": rank, **metadata, "stage": kind}
    write_weights(path, state, to_safetensors_metadata(fields, original=False))


def load(path: Path, kind: str) -> LoraWeights:
    """A LoRA of this kind, from a file in the original format, diffusers' or peft's.

    Raises:
        UserError: a file of another kind (the message says which option takes it), or with missing, unknown or
            mismatched tensors.
    """
    header = read_header_of_kind(path, kind)
    state = lora_to_diffusers(read_tensors(header))
    _check_tensors(path, kind, state)
    scaling = _peft_scaling(header, min(tensor.shape[0] for name, tensor in state.items() if name.endswith(DOWN)))
    if scaling != 1:
        state = {name: (t.float() * scaling).to(t.dtype) if name.endswith(UP) else t for name, t in state.items()}
    return LoraWeights(path, kind, state, header.animateflow_metadata)


def shape_mismatch_error(path: Path, layer: str, down: Tensor, up: Tensor) -> UserError:
    """The error for a layer whose down and up cannot be multiplied."""
    return UserError(
        f"{path} holds {layer} as up {tuple(up.shape)} and down {tuple(down.shape)}.",
        "These matrices cannot be multiplied.",
        "Download or export it again.",
    )


def _rank(state: Mapping[str, Tensor]) -> int:
    return next(tensor.shape[0] for name, tensor in state.items() if name.endswith(DOWN))


def _check_tensors(path: Path, kind: str, state: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: a layer without down or up, a tensor that is neither or that belongs to no layer of the kind, or
            matrices that cannot be multiplied.
    """
    layers = {name[: -len(matrix)] for name in state for matrix in (DOWN, UP) if name.endswith(matrix)}
    wrong = sorted({layer + matrix for layer in layers for matrix in (DOWN, UP)}.symmetric_difference(state))
    wrong += sorted(x for x in layers if not re.fullmatch(TARGET_MODULES[kind], x.removeprefix(UNET_PREFIX)))
    if wrong or not layers:
        raise UserError(
            f"{path} has missing or unknown tensors: {listed(wrong)}.",
            "A LoRA file holds one down and one up matrix for each attention projection, and nothing else.",
            "Download or export it again.",
        )
    for layer in sorted(layers):
        down, up = state[layer + DOWN], state[layer + UP]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.numel() or not up.numel():
            raise shape_mismatch_error(path, layer.removeprefix(UNET_PREFIX), down, up)


def _peft_scaling(header: Header, rank: int) -> float:
    """alpha / rank by peft's metadata; 1 without metadata.

    Raises:
        UserError: the metadata cannot be read, or describes more than one product of two matrices at one strength.
    """
    if PEFT_METADATA_KEY not in header.metadata:
        return 1.0
    try:
        config = json.loads(header.metadata[PEFT_METADATA_KEY])
        config = {name.removeprefix(UNET_PREFIX): value for name, value in config.items()}
        unsupported = _unsupported_options(config)
        alpha, trained_rank = float(config.get("lora_alpha", rank)), config.get("r", rank)
        scaling = alpha / float(trained_rank)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise UserError(
            f"{header.path} has a LoRA config that cannot be read.", "Its strength is not known.", "Export it again."
        ) from None
    if unsupported or trained_rank != rank or not 1e-6 < scaling < 1e6:
        with_rank = f"rank {str(trained_rank)[:20]} and alpha {alpha:g}, and its matrices have rank {rank}"
        raise UserError(
            f"{header.path} was trained with {', '.join(unsupported) or with_rank}.",
            "Supported is one rank and one alpha for all layers.",
            "Train it with the same rank and alpha on every layer.",
        )
    return scaling


def _unsupported_options(config: Mapping[str, Any]) -> list[str]:
    options = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "bias")
    return [name for name in options if config.get(name) and config[name] != "none"]
