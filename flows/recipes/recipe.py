"""The config of a recipe: everything that determines a run, from the videos to the scores."""

from __future__ import annotations

from pathlib import Path

from components.animate.config import AnimationConfig, AnimationModels, WeightedFile
from components.base.model import BaseModel
from components.clip.config import ClipModel
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from data_prep.config import CacheConfig
from evaluation.benchmark.config import BenchmarkConfig, BenchmarkMethod
from evaluation.registry.registry import RegistryEntry
from flows.recipes.footage import DrawnClips, OwnVideos
from infra.config import Config


class BenchmarkPlan(Config):
    """A benchmark without the weights of the run, which `with_weights` adds as further methods."""

    models: tuple[RegistryEntry, ...]
    """The base and personalised models to animate."""
    methods: tuple[BenchmarkMethod, ...]
    """Methods measured besides the run's own weights."""
    prompts: tuple[str, ...]
    """What to animate, the same for every model and method."""
    seeds: tuple[int, ...]
    """One animation per prompt and seed."""
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
    """The model that the flow `animate` animates."""
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
