"""The steps from videos to scores, a plain function each: the command line and the flows call them.

Each reads folders and writes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra.artifacts.artifacts import Artifact
from infra.errors import UserError

if TYPE_CHECKING:
    from components.animate.config import AnimationConfig, AnimationModels
    from components.base.model import BaseModel
    from components.motion.module import MotionModuleConfig
    from components.stages.stage import Stage
    from components.train.report.log import StepReport
    from data_prep.cache.cache import LatentCache
    from data_prep.config import CacheConfig
    from evaluation.benchmark.config import BenchmarkConfig

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
    """Videos → latents, encoded by the base model's VAE.

    Raises:
        UserError: among others: no video could be used; the cache is there, with the reasons, and holds no clip.
    """
    from components.base.hub import resolve
    from data_prep.builder.build import build_latent_cache

    made = build_latent_cache(config, source, videos, resolve(base.path), out, prune, download)
    if not made.counts["clips"]:
        reasons = {name.partition(".")[2]: count for name, count in made.counts.items() if name.startswith("rejected.")}
        raise UserError(
            f"Not one video of {source} could be used: "
            f"{', '.join(f'{count} {name}' for name, count in reasons.items()) or 'it names none'}.",
            f"{out / 'rejected.parquet'} has the reason for each.",
            "Correct the videos or the config, and run the same command again.",
        )
    return made


def opened_cache(folder: Path) -> LatentCache:
    """
    Raises:
        UserError: not a finished latent cache, or one without a clip.
    """
    from data_prep.cache.cache import LatentCache

    cache = LatentCache(folder)
    cache.check_holds_clips()
    return cache


def train(
    stage: Stage,
    base: BaseModel,
    cache: Path,
    out: Path,
    weights: Mapping[str, Path | None],
    on_step: OnStep | None = None,
    workers: int = 1,
    ray_address: str | None = None,
) -> Artifact:
    """Latents → weights of one stage, trained with other `weights` by input name (`domain_adapter`, `motion_module`).

    It runs in this process, or on `workers` of this machine or of the Ray cluster at `ray_address`.
    """
    from components.stages.stage import train_stage
    from components.train.loop.launch import launch_on

    latents = opened_cache(cache)
    launch = launch_on(workers, ray_address)
    return train_stage(stage, base, latents, latents.artifact.as_input(), out, weights, on_step, launch)


def animation(config: AnimationConfig, models: AnimationModels, out: Path, device: str = "auto") -> Artifact:
    """Weights → animation."""
    from components.animate.animation import animate

    return animate(config, models, out, device)


def benchmark(config: BenchmarkConfig, out: Path, device: str = "auto") -> Artifact:
    """Weights → animations → scores."""
    from evaluation.benchmark.benchmark import run_benchmark

    return run_benchmark(config, out, device)


def plan(stage: Stage, base: BaseModel, cache: Path, gpu: str, module: MotionModuleConfig) -> list[str]:
    """What a stage costs on a GPU, in lines to print; no weights are loaded.

    `module` is the shape of the motion module that the stage is given, where it does not train one itself.
    """
    from components.stages.plan import plan as plan_of

    return plan_of(stage, base.path, opened_cache(cache).latent_size, gpu, module).lines()
