"""One plain function an arrow of the data's way; the command line and the flows call these. Each writes one folder.

A training runs in this process, or on `workers` of this machine or of the Ray cluster at `ray_address`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.artifacts.artifacts import Artifact

if TYPE_CHECKING:
    from components.animate.config import AnimationConfig, AnimationModels
    from components.base.model import BaseModel
    from components.stages.stages import DomainAdapterTraining, MotionLoraTraining, MotionModuleTraining
    from components.train.report.log import StepReport
    from data_prep.config import CacheConfig
    from evaluation.benchmark.config import BenchmarkConfig
    from flows.recipes.recipe import Recipe

    OnStep = Callable[[StepReport], None]


def latent_cache(
    config: CacheConfig,
    source: str | Path,
    videos: str | Path | None,
    base: BaseModel,
    out: Path,
    prune: bool = False,
    download: bool = False,
) -> Artifact:
    """Videos → latents, encoded by the base model's VAE."""
    from components.base.hub import resolve
    from data_prep.builder.build import build_latent_cache

    return build_latent_cache(config, source, videos, resolve(base.path), out, prune, download)


def domain_adapter(
    config: DomainAdapterTraining,
    base: BaseModel,
    cache: Path,
    out: Path,
    on_step: OnStep | None = None,
    workers: int = 1,
    ray_address: str | None = None,
) -> Artifact:
    """Latents → domain adapter (stage 1)."""
    from components.stages.stages import train_domain_adapter
    from components.train.loop.launch import launch_on
    from data_prep.cache.cache import LatentCache

    latents = LatentCache(cache)
    return train_domain_adapter(
        config, base, latents, latents.artifact.as_input(), out, on_step, launch_on(workers, ray_address)
    )


def motion_module(
    config: MotionModuleTraining,
    base: BaseModel,
    cache: Path,
    domain_adapter: Path | None,
    out: Path,
    on_step: OnStep | None = None,
    workers: int = 1,
    ray_address: str | None = None,
) -> Artifact:
    """Latents → motion module (stage 2), with the domain adapter active and frozen."""
    from components.stages.stages import train_motion_module
    from components.train.loop.launch import launch_on
    from data_prep.cache.cache import LatentCache

    latents = LatentCache(cache)
    return train_motion_module(
        config, base, latents, latents.artifact.as_input(), out, domain_adapter, on_step,
        launch_on(workers, ray_address),
    )  # fmt: skip


def motion_lora(
    config: MotionLoraTraining,
    base: BaseModel,
    cache: Path,
    motion_module: Path,
    domain_adapter: Path | None,
    out: Path,
    on_step: OnStep | None = None,
    workers: int = 1,
    ray_address: str | None = None,
) -> Artifact:
    """Latents of one shot type → MotionLoRA (stage 3)."""
    from components.stages.stages import train_motion_lora
    from components.train.loop.launch import launch_on
    from data_prep.cache.cache import LatentCache

    latents = LatentCache(cache)
    return train_motion_lora(
        config, base, latents, latents.artifact.as_input(), out, motion_module, domain_adapter, on_step,
        launch_on(workers, ray_address),
    )  # fmt: skip


def animation(config: AnimationConfig, models: AnimationModels, out: Path, device: str = "auto") -> Artifact:
    """Weights → animation."""
    from components.animate.animation import animate

    return animate(config, models, out, device)


def benchmark(config: BenchmarkConfig, out: Path, device: str = "auto") -> Artifact:
    """Weights → animations → scores."""
    from evaluation.benchmark.benchmark import run_benchmark

    return run_benchmark(config, out, device)


def plan(stage: str, recipe: Recipe, cache: Path, gpu: str) -> list[str]:
    """What a stage of a recipe will cost on a GPU, in lines for people; no weights are loaded."""
    from components.stages.plan import plan as plan_of
    from data_prep.cache.cache import LatentCache

    part: Any = {
        "domain-adapter": recipe.domain_adapter,
        "motion-module": recipe.motion_module,
        "motion-lora": recipe.motion_lora,
    }[stage]
    rank = getattr(part, "rank", 0)
    size = LatentCache(cache).latent_size
    return plan_of(stage, part.train, recipe.base.path, size, gpu, recipe.motion_module, rank).lines()
