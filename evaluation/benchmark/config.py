"""What a benchmark compares, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from components.animate.config import AnimationConfig, AnimationModels, WeightedFile
from components.clip.config import ClipModel
from components.files.paths import find_weight_file
from evaluation.benchmark.generation import REFERENCE_SEED
from evaluation.registry.registry import NAME, RegistryEntry
from evaluation.results.samples import (
    METRIC_VERSION,
    Sample,
)
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Input
from infra.artifacts.sealing import RECORD
from infra.config import Config
from infra.errors import UserError


class BenchmarkMethod(Config):
    """A way to animate an image model: a motion module with what is added to it, or none."""

    name: str = Field(pattern=NAME)
    """Short name in paths and tables."""
    title: str
    """Name for people; it should say where the weights come from."""
    motion_module: Path | None = None
    """A motion module folder or file; none animates each frame on its own, the paper's starting point."""
    motion_loras: tuple[WeightedFile, ...] = ()
    """MotionLoRAs with their scales."""
    domain_adapter: WeightedFile | None = None
    """A domain adapter with its alpha."""

    def identity(self) -> dict[str, Any]:
        """Names and scales; the weights themselves are inputs of the artifact."""
        return {
            "name": self.name,
            "title": self.title,
            "scales": [lora.scale for lora in self.motion_loras],
            "alpha": self.domain_adapter.scale if self.domain_adapter else None,
        }

    def inputs(self) -> dict[str, Input]:
        """The weights, by part."""
        files = {f"motion_lora_{index}": lora.path for index, lora in enumerate(self.motion_loras)}
        if self.motion_module is not None:
            files["motion_module"] = self.motion_module
        if self.domain_adapter is not None:
            files["domain_adapter"] = self.domain_adapter.path
        return {part: self._weights(part, path) for part, path in files.items()}

    def _weights(self, part: str, path: Path) -> Input:
        if not path.exists():
            raise UserError(
                f"Method {self.name!r}: {path} does not exist.", f"It was given as its {part}.", "Check the path."
            )
        if (path / RECORD).is_file():
            return artifacts.load(path).as_input()
        return artifacts.outside(find_weight_file(path), part.rstrip("_0123456789").replace("_", "-"))

    def models(self, entry: RegistryEntry) -> AnimationModels:
        """This method on one model of the registry."""
        return AnimationModels(
            base=entry.base,
            motion_module=self.motion_module,
            motion_loras=self.motion_loras,
            domain_adapter=self.domain_adapter,
        )


class BenchmarkConfig(Config):
    """What is animated and scored."""

    models: tuple[RegistryEntry, ...] = Field(min_length=1)
    """The models of the registry to animate."""
    methods: tuple[BenchmarkMethod, ...] = Field(min_length=1)
    """The ways to animate them; differences in the summary are against the first."""
    prompts: tuple[str, ...] = Field(min_length=1)
    """What to animate, before a model's trigger words."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """One animation a prompt for each, the same for all methods."""
    animation: AnimationConfig
    """Size, frames, fps, steps, guidance; its prompt and seed are replaced."""
    clip: ClipModel
    """The CLIP model that scores."""
    references: int = Field(8, ge=2)
    """Pictures of each model and prompt that its domain score is measured against."""

    @model_validator(mode="after")
    def _distinct(self) -> BenchmarkConfig:
        lists: dict[str, list[Any]] = {
            "models": [entry.name for entry in self.models],
            "methods": [method.name for method in self.methods],
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
        }
        for what, values in lists.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{what} must differ from each other, got {values}")
        if not all(0 <= seed < REFERENCE_SEED for seed in self.seeds):
            raise ValueError(f"seeds must be 0..{REFERENCE_SEED - 1}; those above are the references'")
        return self

    def identity(self) -> dict[str, Any]:
        """Paths left out: models, weights and CLIP are inputs of the artifact, known by their bytes."""
        own = {name: value for name, value in super().identity().items() if name != "clip"}
        shown = [
            entry.model_dump(mode="json", include={"name", "title", "trigger", "licence"}) for entry in self.models
        ]
        methods = [method.identity() for method in self.methods]
        return own | {"models": shown, "methods": methods, "metric_version": METRIC_VERSION}

    def inputs(self) -> dict[str, Input]:
        """Everything the scores depend on, by its bytes.

        Raises:
            UserError: a file of a model or a method is not there; the message names which.
        """
        found = {"clip": self.clip.as_input()}
        found |= {f"model.{entry.name}": entry.as_input() for entry in self.models}
        for method in self.methods:
            found |= {f"method.{method.name}.{part}": given for part, given in method.inputs().items()}
        return found

    def samples(self, entry: RegistryEntry, method: BenchmarkMethod) -> Iterator[Sample]:
        """The samples of one model and method, prompt by prompt."""
        pairs = ((prompt, seed) for prompt in self.prompts for seed in self.seeds)
        for index, (prompt, seed) in enumerate(pairs):
            yield Sample(entry.name, method.name, index, prompt, entry.full_prompt(prompt), seed)
