"""MotionLoRA: a LoRA on the temporal attention that teaches a motion module one shot type (paper sec. 4.3).

Several MotionLoRAs can be combined: each adds scale · up @ down to the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from components.files.paths import WEIGHTS_NAMES, find_weight_file
from components.lora import lora
from infra.logs import get_logger

KIND = "motion-lora"
WEIGHTS_NAME = WEIGHTS_NAMES[KIND]

log = get_logger("components")


def add_motion_lora(unet: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Adds a new trainable MotionLoRA to every temporal attention of a `UNetMotionModel` and freezes all else; see
    `lora.add_trainable_lora`."""
    return lora.add_trainable_lora(unet, KIND, rank, seed)


def load_motion_lora(path: Path, module_metadata: Mapping[str, str] | None = None) -> lora.LoraWeights:
    """From a motion-lora artifact, a diffusers LoRA folder, or a file. Warns if it was trained on another preset than
    that of the motion module with this metadata.

    Raises:
        UserError: see `lora.load`.
    """
    weights = lora.load(find_weight_file(path), KIND)
    trained_on, preset = weights.metadata.get("preset"), (module_metadata or {}).get("preset")
    if trained_on and preset and trained_on != preset:
        log.warning("%s was trained on a %s motion module and is used with a %s one.", path, trained_on, preset)
    return weights
