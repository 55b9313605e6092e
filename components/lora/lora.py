"""Low-rank adaptation W += scale · up @ down of attention projections, shared by domain adapter and MotionLoRA.

alpha = rank always, so the factor alpha/rank is 1 and a file without metadata means the same everywhere. Names here are
diffusers' (`unet.<layer>.lora_A.weight` is down, `lora_B` is up); `components.files.names` knows the other ones.
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
from components.files.names import DOWN, PREFIX, UP, lora_to_diffusers
from components.files.notes import metadata_for
from components.files.weight_files import Header, read_header_of, read_tensors, write_weights
from infra.errors import UserError, listed

PROJECTIONS = r"(to_q|to_k|to_v|to_out\.0)"
# The two kinds differ by where they sit. A plain list of layer names would hit both.
SPATIAL_LAYERS = rf".*\.attentions\..*\.attn[12]\.{PROJECTIONS}"
TEMPORAL_LAYERS = rf".*motion_modules.*\.attn[12]\.{PROJECTIONS}"
LAYERS = {"domain-adapter": SPATIAL_LAYERS, "motion-lora": TEMPORAL_LAYERS}
PEFT_METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class LoraWeights:
    """`state` holds the tensors by diffusers' names in the file's dtype, where another tool trained with an alpha of
    its own with alpha/rank in `up`; `notes` are the file's."""

    path: Path
    kind: str
    state: dict[str, Tensor]
    notes: dict[str, str]

    @cached_property
    def layers(self) -> frozenset[str]:
        """Layer names in the UNet."""
        return frozenset(name.removeprefix(PREFIX).removesuffix(DOWN) for name in self.state if name.endswith(DOWN))

    @property
    def rank(self) -> int:
        return next(tensor.shape[0] for name, tensor in self.state.items() if name.endswith(DOWN))

    @property
    def noted(self) -> dict[str, str]:
        """Notes for a copy of it."""
        return {**self.notes, "rank": str(self.rank), "alpha": str(self.rank)}

    def pair(self, layer: str) -> tuple[Tensor, Tensor]:
        """down (r, in) and up (out, r), in the file's dtype."""
        return self.state[PREFIX + layer + DOWN], self.state[PREFIX + layer + UP]

    def delta(self, layer: str) -> Tensor:
        """up @ down, float32 (out, in)."""
        down, up = self.pair(layer)
        return up.float() @ down.float()


def add_trainable(unet: nn.Module, kind: str, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Puts a fresh LoRA (up = 0) on the layers of `kind`; returns its parameters by their names in the file.

    Everything else in the UNet is frozen.

    Raises:
        UserError: the model has no such layers (a motion module of convolutions has no attention).
    """
    from peft import LoraConfig

    if not any(re.fullmatch(LAYERS[kind], name) for name, _ in unet.named_modules()):
        raise UserError(
            f"The model has no layers for {KINDS[kind]}.",
            "It goes onto attention; a motion module of temporal convolutions has none.",
            "Train it on a temporal transformer.",
        )
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
    return found


def save(path: Path, kind: str, state: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """Writes `state` (named as in the file) with its rank and kind in the metadata."""
    rank = next(tensor.shape[0] for name, tensor in state.items() if name.endswith(DOWN))
    noted = {"rank": rank, "alpha": rank, **notes, "stage": kind}
    write_weights(path, state, metadata_for(noted, original=False))


def load(path: Path, kind: str) -> LoraWeights:
    """A LoRA of this kind from a file in diffusers', peft's or the original format.

    Raises:
        UserError: a file of another kind (the message says which option it belongs to), or one that is not whole.
    """
    header = read_header_of(path, kind)
    # diffusers silently loads nothing where the prefix is missing; we know the file's kind, so we add it.
    state = lora_to_diffusers(read_tensors(header))
    halves = {name[: -len(ending)] for name in state for ending in (DOWN, UP) if name.endswith(ending)}
    odd = sorted({half + ending for half in halves for ending in (DOWN, UP)}.symmetric_difference(state))
    odd += sorted(half for half in halves if not re.fullmatch(LAYERS[kind], half.removeprefix(PREFIX)))
    if odd or not halves:
        raise UserError(
            f"{path} has missing or unknown tensors: {listed(odd)}.",
            "A LoRA file holds one down and one up matrix for each attention projection, and nothing else.",
            "Make or download it again.",
        )
    for half in sorted(halves):
        down, up = state[half + DOWN], state[half + UP]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.numel() or not up.numel():
            raise UserError(
                f"{path} holds {half.removeprefix(PREFIX)} as {tuple(up.shape)} times {tuple(down.shape)}.",
                "These matrices have no product.",
                "Make or download it again.",
            )
    rank = min(tensor.shape[0] for name, tensor in state.items() if name.endswith(DOWN))
    if (factor := _factor(header, rank)) != 1:
        state = {name: (t.float() * factor).to(t.dtype) if name.endswith(UP) else t for name, t in state.items()}
    return LoraWeights(path, kind, state, header.notes)


def _factor(header: Header, rank: int) -> float:
    """alpha / rank of a file that peft or diffusers wrote with an alpha of its own; 1 without metadata, as everywhere.

    Raises:
        UserError: metadata that cannot be read, or say that a plain product is not what was trained.
    """
    if PEFT_METADATA not in header.metadata:
        return 1.0
    try:
        settings = json.loads(header.metadata[PEFT_METADATA])
        said = {name.removeprefix(PREFIX): value for name, value in settings.items()}
        odd = [name for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "bias") if said.get(name)]
        alpha, trained_rank = float(said.get("lora_alpha", rank)), said.get("r", rank)
        factor = alpha / float(trained_rank)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise UserError(
            f"{header.path} has LoRA settings that cannot be read.", "Its strength is not known.", "Export it again."
        ) from None
    odd = [name for name in odd if said[name] != "none"]
    if odd or trained_rank != rank or not 1e-6 < factor < 1e6:
        what = ", ".join(odd) or f"rank {str(trained_rank)[:20]} and alpha {alpha:g}, and its matrices have rank {rank}"
        raise UserError(
            f"{header.path} was trained with {what}.",
            "It is not a plain product of two matrices at one strength.",
            "Train it with the same rank and alpha on every layer.",
        )
    return factor
