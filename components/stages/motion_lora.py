"""Stage 3, the MotionLoRA: a LoRA on the temporal attention that learns one shot type from a few clips (sec. 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn

from components.lora import motion_lora
from components.motion.files import load_motion_module
from components.stages.models import start_lora, with_motion_module
from components.stages.outputs import save_lora
from components.stages.stage import Model, Stage
from components.train.config import TrainConfig
from infra.config import execution

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class MotionLoraTraining(Stage):
    """Stage 3: LoRA on the temporal attention of a frozen motion module, on clips of one shot type."""

    kind = motion_lora.KIND
    title = "MotionLoRA"
    clips = True
    required = ("motion_module",)
    optional = ("domain_adapter",)

    train: TrainConfig = TrainConfig(steps=2000)
    """How it is trained."""
    rank: int = Field(64, ge=1)
    """Rank of the LoRA; 64 is what the released MotionLoRAs imply."""
    init_from: Path | None = execution(None)
    """MotionLoRA to start from; its content, not its path, is part of the identity."""

    def load(self, pipeline: StableDiffusionPipeline, weights: Mapping[str, Path]) -> Model:
        adapter, module_metadata = load_motion_module(weights["motion_module"])
        unet = with_motion_module(pipeline, adapter, module_metadata, self.train.frames)
        kept = ("preset", "group_norm", "image_group_norm", "max_frames")
        return Model(unet, {name: module_metadata.get(name) for name in kept})

    def set_trainable(self, unet: nn.Module) -> dict[str, nn.Parameter]:
        return motion_lora.add_motion_lora(unet, self.rank, self.train.seed)

    def initialise(self, trainable: Mapping[str, nn.Parameter], init_from: Path) -> None:
        start_lora(trainable, motion_lora.load_motion_lora(init_from), init_from)

    def save(self, folder: Path, model: Model, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
        save_lora(folder, self.kind, motion_lora.WEIGHTS_NAME, weights, metadata)
