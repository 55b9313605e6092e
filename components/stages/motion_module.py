"""Stage 2, the motion module: the temporal layers that move every personalised version of the base model (sec. 4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from components.motion.files import KIND, load_motion_module, shape_metadata
from components.motion.module import MotionModuleConfig, config_metadata, fresh_motion_adapter, motion_state_dict
from components.stages.models import with_motion_module
from components.stages.outputs import save_motion
from components.stages.stage import Model, Stage
from infra.config import execution

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class MotionModuleTraining(Stage, MotionModuleConfig):
    """Stage 2: the motion module, on clips, the domain adapter active and frozen."""

    kind = KIND
    title = "motion module"
    clips = True
    optional = ("domain_adapter",)

    init_from: Path | None = execution(None)
    """Motion module to start from (its shape, preset and norms then count); its content is part of the identity."""

    def load(self, pipeline: StableDiffusionPipeline, weights: Mapping[str, Path]) -> Model:
        if self.init_from is None:
            adapter = fresh_motion_adapter(self, pipeline.unet, self.train.seed)
            module_metadata = {name: str(value) for name, value in config_metadata(self).items()}
        else:
            adapter, module_metadata = load_motion_module(self.init_from, self.max_frames)
        unet = with_motion_module(pipeline, adapter, module_metadata, self.train.frames)
        kept = {name: module_metadata.get(name) for name in ("preset", "group_norm", "image_group_norm")}
        return Model(unet, {**kept, **shape_metadata(adapter)}, adapter)

    def set_trainable(self, unet: nn.Module) -> dict[str, nn.Parameter]:
        unet.requires_grad_(False)
        found = {name: parameter for name, parameter in unet.named_parameters() if ".motion_modules." in name}
        for parameter in found.values():
            parameter.requires_grad_(True)
        return found

    def save(self, folder: Path, model: Model, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
        assert model.adapter is not None
        save_motion(folder, model.adapter, {**motion_state_dict(model.unet), **weights}, metadata)

    @property
    def new_module(self) -> MotionModuleConfig:
        return self
