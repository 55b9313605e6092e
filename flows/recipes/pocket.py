"""The pocket recipes: one that runs in minutes on two CPU cores, and one that made the shipped weights."""

from __future__ import annotations

from components.animate.config import AnimationConfig, WeightedFile
from components.base.model import BaseModel, LoraFile
from components.clip.config import ClipModel
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.train.config import TrainConfig
from data_prep.config import CacheConfig
from evaluation.benchmark.config import BenchmarkMethod
from evaluation.registry.registry import RegistryEntry
from flows.recipes.footage import DrawnClips
from flows.recipes.recipe import BenchmarkPlan, Recipe
from infra.pocket.build import WEIGHTS

NO_MOTION_MODULE = BenchmarkMethod(name="image-model", title="Image model alone, each frame on its own")


def pocket() -> Recipe:
    """Minutes on two CPU cores: drawn clips, a small base model, short runs that start from the shipped weights."""
    base = BaseModel(path=WEIGHTS / "base")
    ink = BaseModel(path=WEIGHTS / "ink.safetensors", reference=WEIGHTS / "base")
    neon = BaseModel(path=WEIGHTS / "base", loras=(LoraFile(path=WEIGHTS / "neon.safetensors"),))
    train = TrainConfig(steps=60, batch_size=4, learning_rate=1e-4, held_out_clips=8, held_out_every_steps=30)
    cache = CacheConfig(size=64, fps=8.0, frames_min=16, frames_max=20)
    animation = AnimationConfig(prompt="a red square moving left on grass", seed=4, height=64, width=64, steps=20)
    return Recipe(
        base=base,
        footage=DrawnClips(count=96, seed=1),
        cache=cache,
        shot_footage=DrawnClips(count=32, seed=2),
        shots=cache.replace(shot_type="zoom-in"),
        domain_adapter=DomainAdapterTraining(
            rank=16, train=train.replace(batch_size=16), init_from=WEIGHTS / "domain-adapter"
        ),
        motion_module=MotionModuleTraining(
            preset="from-base", train=train.replace(steps=80), init_from=WEIGHTS / "motion-module"
        ),
        motion_lora=MotionLoraTraining(rank=16, train=train, init_from=WEIGHTS / "motion-lora-zoom-in"),
        personalised=ink,
        animation=animation,
        benchmark=BenchmarkPlan(
            models=(
                RegistryEntry(name="base", title="Pocket base model", base=base, trigger="", licence="Apache-2.0"),
                RegistryEntry(name="ink", title="Ink drawing (full model)", base=ink, trigger="", licence="Apache-2.0"),
                RegistryEntry(name="neon", title="Neon (LoRA)", base=neon, trigger="", licence="Apache-2.0"),
            ),
            methods=(
                NO_MOTION_MODULE,
                BenchmarkMethod(name="shipped", title="Shipped motion module", motion_module=WEIGHTS / "motion-module"),
                BenchmarkMethod(
                    name="shipped-motion-lora",
                    title="Shipped motion module and MotionLoRA",
                    motion_module=WEIGHTS / "motion-module",
                    motion_loras=(WeightedFile(path=WEIGHTS / "motion-lora-zoom-in"),),
                ),
            ),
            prompts=("a blue circle moving up on sand", "a red square moving left on grass"),
            seeds=(4,),
            animation=animation,
            clip=ClipModel(name=f"local-dir:{WEIGHTS / 'clip'}"),
            references=8,
        ),
    )


def pocket_full() -> Recipe:
    """The recipe that made the shipped weights: the pocket recipe from random weights, with thousands of steps."""
    train = TrainConfig(
        steps=4000,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=100,
        learning_rate_decay="cosine",
        ema_decay=0.995,
        min_snr_gamma=5.0,
        held_out_clips=16,
        log_every_steps=25,
    )
    return pocket().replace(
        footage=DrawnClips(count=640, seed=1),
        shot_footage=DrawnClips(count=50, seed=2),
        domain_adapter=DomainAdapterTraining(rank=16, train=train.replace(steps=800, batch_size=16)),
        motion_module=MotionModuleTraining(preset="from-base", train=train),
        motion_lora=MotionLoraTraining(rank=16, train=train.replace(steps=500)),
    )
