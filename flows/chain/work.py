"""A recipe under a root folder: every artifact's place, and whatever is missing upstream gets made."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flows.chain import steps
from flows.recipes.footage import Footage
from infra.artifacts.artifacts import Artifact

if TYPE_CHECKING:
    from flows.chain.steps import OnStep
    from flows.recipes.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """Each method returns the finished artifact `<root>/<kind>/<name>/`, at once where it is there already.

    A path that is not given means the recipe's own artifact under the same root, made first where it is missing.
    """

    recipe: Recipe
    root: Path
    _in_hand: dict[Hashable, Artifact] = field(default_factory=dict, init=False, repr=False, compare=False)

    def latent_cache(
        self, source: str | None = None, videos: str | None = None, prune: bool = False, download: bool = False
    ) -> Artifact:
        """Videos → latents."""

        def make(out: Path) -> Artifact:
            clips = self.root / "pocket-clips/footage"
            given = Footage(source, videos) if source else self.recipe.footage.provide(clips)
            return steps.latent_cache(
                self.recipe.cache, given.source, given.videos, self.recipe.base, out, prune, download
            )

        return self._once("latent-cache/footage", make, source, videos, prune, download)

    def shot_cache(
        self, source: str | None = None, videos: str | None = None, prune: bool = False, download: bool = False
    ) -> Artifact:
        """Reference clips → latents of one shot type."""

        def make(out: Path) -> Artifact:
            clips = self.root / "pocket-clips/shots"
            given = Footage(source, videos) if source else self.recipe.shot_footage.provide(clips)
            return steps.latent_cache(
                self.recipe.shots, given.source, given.videos, self.recipe.base, out, prune, download
            )

        return self._once(f"latent-cache/{self.recipe.shots.shot_type}", make, source, videos, prune, download)

    def domain_adapter(self, cache: Path | None = None, on_step: OnStep | None = None, workers: int = 1) -> Artifact:
        """Latents → domain adapter."""
        cache = cache or self.latent_cache().folder

        def make(out: Path) -> Artifact:
            return steps.domain_adapter(self.recipe.domain_adapter, self.recipe.base, cache, out, on_step, workers)

        return self._once("domain-adapter/adapter", make, cache)

    def motion_module(
        self,
        cache: Path | None = None,
        domain_adapter: Path | None = None,
        on_step: OnStep | None = None,
        workers: int = 1,
    ) -> Artifact:
        """Latents → motion module."""
        cache = cache or self.latent_cache().folder
        adapter = domain_adapter or self.domain_adapter(cache).folder

        def make(out: Path) -> Artifact:
            recipe = self.recipe
            return steps.motion_module(recipe.motion_module, recipe.base, cache, adapter, out, on_step, workers)

        return self._once("motion-module/motion", make, cache, adapter)

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
        motion = motion_module or self.motion_module(domain_adapter=adapter).folder

        def make(out: Path) -> Artifact:
            recipe = self.recipe
            return steps.motion_lora(recipe.motion_lora, recipe.base, cache, motion, adapter, out, on_step, workers)

        return self._once(f"motion-lora/{self.recipe.shots.shot_type}", make, cache, motion, adapter)

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

    def _once(self, place: str, make: Callable[[Path], Artifact], *given: Hashable) -> Artifact:
        """Makes or finds an artifact, and hashes its inputs, once in the life of this object."""
        key = (place, *given)
        if key not in self._in_hand:
            self._in_hand[key] = make(self.root / place)
        return self._in_hand[key]


def slug(text: str) -> str:
    """`A red square, moving left` to `a-red-square-moving-left`, at most 60 characters: a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:60].strip("-") or "animation"


STAGES: tuple[tuple[str, Callable[[Work], Artifact]], ...] = (
    ("Videos → latents", Work.latent_cache),
    ("Reference clips → latents of one shot type", Work.shot_cache),
    ("Latents → domain adapter", Work.domain_adapter),
    ("Latents → motion module", Work.motion_module),
    ("Latents → MotionLoRA", Work.motion_lora),
    ("Weights → animation", Work.animation),
    ("Weights → animations → scores", Work.benchmark),
)
