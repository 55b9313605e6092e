"""Activation checkpointing: parts of the UNet discard their activations and compute them again in the backward pass.

diffusers' own switch covers resnets, the inside of spatial transformers and the mid block's motion module; measured on
SD 1.5 with the v3 module at 256 px, 16 frames, it saves a third, and `full` here nine tenths (docs/performance.md).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

from torch import nn
from torch.utils.checkpoint import checkpoint

from components.motion.module import temporal_modules

Checkpointing = Literal["none", "resnets", "full"]
MODES: tuple[Checkpointing, ...] = get_args(Checkpointing)
"""From the least recomputed to the most."""


def checkpoint_activations(unet: nn.Module, mode: Checkpointing) -> None:
    """Makes the layers of `recomputed_parts` recompute themselves. None of them draws random numbers."""
    for part in recomputed_parts(unet, mode):
        part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)


def recomputed_parts(unet: nn.Module, mode: Checkpointing) -> list[Any]:
    """The resnets, or all layers that hold much (resnets, spatial transformers, temporal transformers), of a
    `UNet2DConditionModel` or `UNetMotionModel`."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    kinds = {"none": (), "resnets": (ResnetBlock2D,), "full": (ResnetBlock2D, Transformer2DModel)}[mode]
    parts: list[Any] = [part for part in unet.modules() if isinstance(part, kinds)]
    return [*parts, *temporal_modules(unet).values()] if mode == "full" else parts
