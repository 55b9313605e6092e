"""The recipe for Stable Diffusion 1.5."""

from __future__ import annotations

from pathlib import Path

from components.animate.config import AnimationConfig
from components.base.model import HUB_REFERENCE, BaseModel
from components.clip.config import ClipModel
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.train.config import TrainConfig
from data_prep.config import CacheConfig
from evaluation.registry.registry import RegistryEntry
from flows.recipes.footage import OwnVideos
from flows.recipes.pocket import NO_MOTION_MODULE
from flows.recipes.recipe import BenchmarkPlan, Recipe


def sd15() -> Recipe:
    """Stable Diffusion 1.5 at 256 pixels, as the paper and the released v3 modules, on your own videos."""
    base = BaseModel(path=Path(HUB_REFERENCE))
    train = TrainConfig(batch_size=4, learning_rate=1e-4, activation_checkpointing="auto")
    cache = CacheConfig(size=256, fps=8.0, frames_min=16, frames_max=64)
    animation = AnimationConfig(prompt="a fox running through snow", height=512, width=512)
    return Recipe(
        base=base,
        footage=OwnVideos(),
        cache=cache,
        shot_footage=OwnVideos(),
        shots=cache.replace(shot_type="zoom-in"),
        domain_adapter=DomainAdapterTraining(
            rank=128, train=train.replace(steps=20_000, batch_size=16, beta_schedule="scaled_linear")
        ),
        motion_module=MotionModuleTraining(preset="v3", train=train.replace(steps=100_000)),
        motion_lora=MotionLoraTraining(rank=64, train=train.replace(steps=2000)),
        personalised=base,
        animation=animation,
        domain_adapter_alpha=0.0,
        benchmark=BenchmarkPlan(
            models=(
                RegistryEntry(
                    name="sd15", title="Stable Diffusion 1.5", base=base, trigger="", licence="CreativeML Open RAIL-M"
                ),
            ),
            methods=(NO_MOTION_MODULE,),
            prompts=("a fox running through snow", "waves breaking on a rocky coast", "a woman turning her head"),
            seeds=(0, 1),
            animation=animation,
            clip=ClipModel(),
            references=16,
        ),
    )
