"""The domain adapter: a LoRA on the image layers that takes up what video frames look like (paper sec. 4.1).

It is trained on single frames, stays active and frozen while the motion module learns, and is scaled by alpha or left
out at inference (paper eq. 4), so that the motion module need not learn watermarks and blur.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from components.files import inputs
from components.lora import lora

KIND = "domain-adapter"
WEIGHTS = inputs.WEIGHTS[KIND]


def add_domain_adapter(unet: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """A fresh trainable domain adapter on every spatial attention of a UNet; all else is frozen."""
    return lora.add_trainable(unet, KIND, rank, seed)


def load_domain_adapter(path: Path) -> lora.LoraWeights:
    """From a domain-adapter artifact's or a diffusers folder, or a file; raises UserError for any other kind."""
    return lora.load(inputs.weight_file(path), KIND)
