"""MotionLoRA: a LoRA on the temporal attention that teaches a motion module one shot type (paper sec. 4.3).

MotionLoRAs trained apart add up: each is W += scale · up @ down on the same layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from components.files import inputs
from components.lora import lora
from infra.logs import get_logger

KIND = "motion-lora"
WEIGHTS = inputs.WEIGHTS[KIND]

log = get_logger("components")


def add_motion_lora(unet: nn.Module, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """A fresh trainable MotionLoRA on every temporal attention of a `UNetMotionModel`; all else is frozen."""
    return lora.add_trainable(unet, KIND, rank, seed)


def load_motion_lora(path: Path, module_notes: Mapping[str, str] | None = None) -> lora.LoraWeights:
    """From a motion-lora artifact's or a diffusers folder, or a file; warns when it was trained on another preset than
    the motion module of these notes. Raises UserError for any other kind."""
    weights = lora.load(inputs.weight_file(path), KIND)
    trained_on, preset = weights.notes.get("preset"), (module_notes or {}).get("preset")
    if trained_on and preset and trained_on != preset:
        log.warning("%s was trained on a %s motion module and is used with a %s one.", path, trained_on, preset)
    return weights
