"""Recipes: functions that return a whole config. A variant calls another recipe and replaces fields.

`--set FIELD=VALUE` changes one field of a recipe from the command line: `--set motion_module.train.steps=200`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.animation import AnimationConfig, AnimationModels, WeightedFile
from components.base_model import HUB_REFERENCE, BaseModel, LoraFile
from components.clip_model import ClipModel
from components.stages import DomainAdapterTraining, MotionLoraTraining, MotionModuleTraining
from components.trainer import TrainConfig
from data_prep.build import CacheConfig
from evaluation.benchmark import BenchmarkConfig, BenchmarkMethod
from evaluation.registry import RegistryEntry
from flows.footage import DrawnClips, OwnVideos
from infra.config import Config
from infra.errors import UserError
from infra.pocket.build import WEIGHTS

NO_MOTION_MODULE = BenchmarkMethod(name="image-model", title="Image model alone, each frame on its own")


class BenchmarkPlan(Config):
    """A benchmark but for the weights of the run at hand, which become methods of it when they are there."""

    models: tuple[RegistryEntry, ...]
    """The base and personalised models to animate."""
    methods: tuple[BenchmarkMethod, ...]
    """Methods measured beside the run's own weights."""
    prompts: tuple[str, ...]
    """What to animate, the same for every model and method."""
    seeds: tuple[int, ...]
    """One animation a prompt for each."""
    animation: AnimationConfig
    """Size, frames, steps and guidance; prompt and seed come from the lists above."""
    clip: ClipModel
    """The CLIP model that scores."""
    references: int
    """Pictures of each image model that its domain score is measured against."""
    motion_lora_scale: float = 1.0
    """Strength of the run's MotionLoRA."""
    domain_adapter_alpha: float = 0.0
    """Strength of the run's domain adapter; 0 leaves it out, as the paper does for personalised models."""

    def with_weights(
        self, motion_module: Path | None, motion_lora: Path | None, domain_adapter: Path | None
    ) -> BenchmarkConfig:
        """The benchmark with the given weights as further methods."""
        adapter = weighted_adapter(domain_adapter, self.domain_adapter_alpha)
        own = []
        if motion_module is not None:
            own.append(
                BenchmarkMethod(
                    name="this-run",
                    title="Motion module of this run",
                    motion_module=motion_module,
                    domain_adapter=adapter,
                )
            )
        if motion_module is not None and motion_lora is not None:
            own.append(
                BenchmarkMethod(
                    name="this-run-motion-lora",
                    title="Motion module and MotionLoRA of this run",
                    motion_module=motion_module,
                    motion_loras=(WeightedFile(path=motion_lora, scale=self.motion_lora_scale),),
                    domain_adapter=adapter,
                )
            )
        return BenchmarkConfig(
            models=self.models,
            methods=(*self.methods, *own),
            prompts=self.prompts,
            seeds=self.seeds,
            animation=self.animation,
            clip=self.clip,
            references=self.references,
        )


class Recipe(Config):
    """Everything that determines a run, from the videos to the scores."""

    base: BaseModel
    """The text-to-image model that all three stages are trained on."""
    footage: DrawnClips | OwnVideos
    """Videos for the domain adapter and the motion module."""
    cache: CacheConfig
    """How they become latents."""
    shot_footage: DrawnClips | OwnVideos
    """Reference clips for the MotionLoRA."""
    shots: CacheConfig
    """How they become latents of one shot type."""
    domain_adapter: DomainAdapterTraining
    """Stage 1."""
    motion_module: MotionModuleTraining
    """Stage 2."""
    motion_lora: MotionLoraTraining
    """Stage 3."""
    personalised: BaseModel
    """The model that the flow `animate` brings to life."""
    animation: AnimationConfig
    """What it shows, and how it is sampled."""
    motion_lora_scale: float = 1.0
    """Strength of the MotionLoRA in it."""
    domain_adapter_alpha: float = 0.0
    """Strength of the domain adapter in it; 0 leaves it out."""
    benchmark: BenchmarkPlan
    """What is scored."""

    def animation_models(self, motion_module: Path, motion_lora: Path, domain_adapter: Path) -> AnimationModels:
        """The personalised model with the given weights."""
        return AnimationModels(
            base=self.personalised,
            motion_module=motion_module,
            motion_loras=(WeightedFile(path=motion_lora, scale=self.motion_lora_scale),),
            domain_adapter=weighted_adapter(domain_adapter, self.domain_adapter_alpha),
        )


def weighted_adapter(path: Path | None, alpha: float) -> WeightedFile | None:
    """None where the adapter is left out."""
    return WeightedFile(path=path, scale=alpha) if path is not None and alpha else None


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
    """What made the shipped weights: the pocket recipe from nothing, with thousands of steps."""
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
        domain_adapter=DomainAdapterTraining(rank=128, train=train.replace(steps=20_000, batch_size=16)),
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
            clip=ClipModel(name="ViT-B-32", pretrained="openai"),
            references=16,
        ),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"pocket": pocket, "pocket-full": pocket_full, "sd15": sd15}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in RECIPES:
        raise UserError(
            f"There is no recipe {name!r}.", f"Recipes: {', '.join(RECIPES)}.", "Pass one of them to --recipe."
        )
    return RECIPES[name]()
