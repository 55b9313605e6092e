"""The domain adapter: a LoRA on the image layers that learns the look of the training videos (paper sec. 4.1).

It is trained on single frames. While the motion module is trained it is active and frozen, so that the motion module
does not learn watermarks and blur. At inference it is scaled by alpha or left out (paper eq. 4).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from components.files.paths import WEIGHTS_NAMES, find_weight_file
from components.lora import lora

KIND = "domain-adapter"
WEIGHTS_NAME = WEIGHTS_NAMES[KIND]


def add_domain_adapter(unet: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Adds a new trainable domain adapter to every spatial attention of a UNet and freezes all else; see
    `lora.add_trainable_lora`."""
    return lora.add_trainable_lora(unet, KIND, rank, seed)


def load_domain_adapter(path: Path) -> lora.LoraWeights:
    """From a domain-adapter artifact, a diffusers LoRA folder, or a file.

    Raises:
        UserError: see `lora.load`.
    """
    return lora.load(find_weight_file(path), KIND)
