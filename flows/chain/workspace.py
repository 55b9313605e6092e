"""The artifacts of a recipe under one root folder; what an artifact needs and is missing is made first."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.chain import steps
from flows.recipes.footage import Footage
from infra.artifacts.artifacts import Artifact

if TYPE_CHECKING:
    from components.stages.stage import Stage
    from data_prep.config import CacheConfig
    from flows.chain.steps import OnStep
    from flows.recipes.recipe import Recipe


@dataclass(frozen=True)
class Workspace:
    """Each method returns the finished artifact `<root>/<kind>/<name>/`; one that exists is not made again.

    A path that is not given means the recipe's own artifact under the same root, made first if it is missing.
    """

    recipe: Recipe
    root: Path
    _made: dict[Hashable, Artifact] = field(default_factory=dict, init=False, repr=False, compare=False)

    def latent_cache(
        self, source: str | None = None, videos: str | None = None, prune: bool = False, download: bool = False
    ) -> Artifact:
        """Videos → latents; from the recipe's own footage where no source is given."""
        own = partial(self.recipe.footage.provide, self.root / "pocket-clips/footage")
        return self._cache("footage", self.recipe.cache, own, source, videos, prune, download)

    def shot_cache(
        self, source: str | None = None, videos: str | None = None, prune: bool = False, download: bool = False
    ) -> Artifact:
        """Reference clips → latents of one shot type; from the recipe's own clips where no source is given."""
        own = partial(self.recipe.shot_footage.provide, self.root / "pocket-clips/shots")
        return self._cache(self.recipe.shots.shot_type, self.recipe.shots, own, source, videos, prune, download)

    def domain_adapter(self, cache: Path | None = None, on_step: OnStep | None = None, workers: int = 1) -> Artifact:
        """Latents → domain adapter."""
        cache = cache or self.latent_cache().folder
        return self._train("adapter", self.recipe.domain_adapter, cache, {}, on_step, workers)

    def motion_module(
        self,
        cache: Path | None = None,
        domain_adapter: Path | None = None,
        on_step: OnStep | None = None,
        workers: int = 1,
    ) -> Artifact:
        """Latents → motion module."""
        cache = cache or self.latent_cache().folder
        weights = {"domain_adapter": domain_adapter or self.domain_adapter(cache).folder}
        return self._train("motion", self.recipe.motion_module, cache, weights, on_step, workers)

    def motion_lora(
        self,
        cache: Path | None = None,
        motion_module: Path | None = None,
        domain_adapter: Path | None = None,
        on_step: OnStep | None = None,
        workers: int = 1,
    ) -> Artifact:
        """Latents of one shot type → MotionLoRA. `cache` is the reference clips' cache."""
        cache = cache or self.shot_cache().folder
        adapter = domain_adapter or self.domain_adapter().folder
        module = motion_module or self.motion_module(domain_adapter=adapter).folder
        weights = {"motion_module": module, "domain_adapter": adapter}
        return self._train(self.recipe.shots.shot_type, self.recipe.motion_lora, cache, weights, on_step, workers)

    def animation(self, prompt: str | None = None, seed: int | None = None) -> Artifact:
        """Weights → animation, with the personalised model of the recipe."""
        changes = {name: value for name, value in (("prompt", prompt), ("seed", seed)) if value is not None}
        config = self.recipe.animation.replace(**changes)
        models = self.recipe.animation_models(
            self.motion_module().folder, self.motion_lora().folder, self.domain_adapter().folder
        )
        return steps.animation(config, models, self.root / f"animation/{slug(config.prompt)}-{config.seed}")

    def benchmark(self, name: str = "scores") -> Artifact:
        """Weights → animations → scores."""
        config = self.recipe.benchmark.with_weights(
            self.motion_module().folder, self.motion_lora().folder, self.domain_adapter().folder
        )
        return steps.benchmark(config, self.root / "benchmark" / name)

    def _cache(
        self,
        name: str,
        config: CacheConfig,
        own: Callable[[], Footage],
        source: str | None,
        videos: str | None,
        prune: bool,
        download: bool,
    ) -> Artifact:
        def make(out: Path) -> Artifact:
            given = Footage(source, videos) if source else own()
            return steps.latent_cache(config, given.source, given.videos, self.recipe.base, out, prune, download)

        return self._make_once(f"latent-cache/{name}", make, source, videos, prune, download)

    def _train(
        self, name: str, stage: Stage, cache: Path, weights: Mapping[str, Path], on_step: OnStep | None, workers: int
    ) -> Artifact:
        def make(out: Path) -> Artifact:
            return steps.train(stage, self.recipe.base, cache, out, weights, on_step, workers)

        return self._make_once(f"{stage.kind}/{name}", make, cache, *weights.values())

    def _make_once(self, place: str, make: Callable[[Path], Artifact], *given: Hashable) -> Artifact:
        """Makes or finds an artifact, and hashes its inputs, once in the life of this object."""
        key = (place, *given)
        if key not in self._made:
            self._made[key] = make(self.root / place)
        return self._made[key]


def slug(text: str) -> str:
    """`A red square, moving left` to `a-red-square-moving-left`, at most 60 characters: a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-") or "animation"


STEPS: tuple[tuple[str, Callable[[Workspace], Artifact]], ...] = (
    ("Videos → latents", Workspace.latent_cache),
    ("Reference clips → latents of one shot type", Workspace.shot_cache),
    ("Latents → domain adapter", Workspace.domain_adapter),
    ("Latents → motion module", Workspace.motion_module),
    ("Latents → MotionLoRA", Workspace.motion_lora),
    ("Weights → animation", Workspace.animation),
    ("Weights → animations → scores", Workspace.benchmark),
)
