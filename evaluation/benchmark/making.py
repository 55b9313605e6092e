"""From models to a benchmark's files: animators and references, made only where their files are not there yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from components.animate.animator import Animator
from components.animate.config import AnimationConfig, AnimationModels
from components.clip.clip import ClipEncoder, Float
from evaluation.registry.registry import RegistryEntry
from evaluation.results.samples import (
    Sample,
    failed_sample,
    has_animation,
    load_references,
    save_references,
    score_sample,
    write_animation,
)
from infra.errors import AnimateflowError
from infra.logs import get_logger

REFERENCE_SEED = 1_000_000_000
"""References are drawn from seeds from here on, animations from seeds below: a shared seed may be a shared picture."""
FAILURES = (AnimateflowError, RuntimeError, ValueError, OSError)

log = get_logger("evaluation")


@dataclass
class Maker:
    """An animator that is loaded for the first animation that is missing, once."""

    models: AnimationModels
    device: str
    _refused: AnimateflowError | None = None

    @cached_property
    def animator(self) -> Animator:
        """
        Raises:
            AnimateflowError: weights that do not fit each other; found out once, said for every sample.
        """
        if self._refused is not None:
            raise self._refused
        try:
            return Animator(self.models, self.device)
        except AnimateflowError as error:
            self._refused = error
            raise


@dataclass
class References:
    """What an image model draws by itself for each prompt, as files and as embeddings."""

    animation: AnimationConfig
    prompts: tuple[str, ...]
    count: int
    entry: RegistryEntry
    folder: Path
    encoder: ClipEncoder
    device: str
    _known: dict[str, Float] = field(default_factory=dict)

    def of(self, prompt: str) -> Float:
        """(K, D) embeddings of the prompt's references, drawn where they are not there yet."""
        if prompt not in self._known:
            place = self.folder / "references" / self.entry.name / f"{self.prompts.index(prompt):04d}"
            if not place.is_dir():
                wanted = self.animation.replace(prompt=self.entry.full_prompt(prompt), seed=REFERENCE_SEED)
                save_references(place, self._maker.animator.images(wanted, self.count))
            self._known[prompt] = self.encoder.encode_images(load_references(place))
        return self._known[prompt]

    @cached_property
    def _maker(self) -> Maker:
        return Maker(AnimationModels(base=self.entry.base), self.device)


def make_and_score(template: AnimationConfig, sample: Sample, maker: Maker, references: References) -> dict[str, Any]:
    """Makes the animation where it is not there yet, then scores its file; a failure is a row as well."""
    animation = template.replace(prompt=sample.full_prompt, seed=sample.seed)
    try:
        if not has_animation(references.folder, sample):
            write_animation(references.folder, sample, maker.animator.frames(animation), animation)
        return score_sample(references.folder, sample, animation.fps, references.encoder, references.of(sample.prompt))
    except FAILURES as error:
        reason = str(error) if isinstance(error, AnimateflowError) else f"{type(error).__name__}: {error}"
        log.warning("%s: %s", sample.stem, reason)
        return failed_sample(sample, references.encoder, reason)
