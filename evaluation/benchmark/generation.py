"""Animations and references of a benchmark, generated where their files do not exist yet, and scored from the files."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from components.animate.animator import Animator
from components.animate.config import AnimationConfig, AnimationModels, Precision
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
from infra.artifacts.sealing import is_disk_full
from infra.errors import AnimateflowError, TransientError
from infra.logs import get_logger
from infra.memory import free_memory, is_out_of_memory

REFERENCE_SEED = 1_000_000_000
"""References are drawn from seeds from here on, animations from seeds below: a shared seed may be a shared picture."""
FAILURES = (AnimateflowError, RuntimeError, ValueError, OSError, MemoryError)

log = get_logger("evaluation")


@dataclass
class SharedAnimator:
    """One animator for all methods on a base model: the base is loaded once, for the first file that is missing."""

    device: str
    precision: Precision
    _animator: Animator | None = None
    _refused: dict[str, AnimateflowError] = field(default_factory=dict)

    def using(self, models: AnimationModels) -> Animator:
        """The animator with these weights.

        Raises:
            AnimateflowError: weights that do not fit each other; found out once, raised for every sample.
        """
        key = models.model_dump_json()
        if key in self._refused:
            raise copy.copy(self._refused[key])
        try:
            if self._animator is None:
                self._animator = Animator(models, self.device, self.precision)
            elif self._animator.models != models:
                self._animator.use(models)
        except AnimateflowError as error:
            if not isinstance(error, TransientError):
                self._refused[key] = copy.copy(error)  # without the traceback, whose frames hold a UNet
            raise
        except Exception:
            self._animator = None  # it may be half changed
            raise
        return self._animator


@dataclass
class References:
    """What an image model draws by itself for each prompt, as files and as embeddings."""

    animation: AnimationConfig
    prompts: tuple[str, ...]
    count: int
    entry: RegistryEntry
    folder: Path
    encoder: ClipEncoder
    animator: SharedAnimator
    _known: dict[str, Float] = field(default_factory=dict)

    def of(self, prompt: str) -> Float:
        """(K, D) embeddings of the prompt's references. Missing files are drawn for all prompts at once, so that the
        animator changes its weights once."""
        if prompt not in self._known:
            if not self._place(prompt).is_dir():
                self._draw()
            self._known[prompt] = self.encoder.encode_images(load_references(self._place(prompt)))
        return self._known[prompt]

    def _place(self, prompt: str) -> Path:
        return self.folder / "references" / self.entry.name / f"{self.prompts.index(prompt):04d}"

    def _draw(self) -> None:
        animator = self.animator.using(AnimationModels(base=self.entry.base))
        for prompt in self.prompts:
            if not self._place(prompt).is_dir():
                wanted = self.animation.replace(prompt=self.entry.full_prompt(prompt), seed=REFERENCE_SEED)
                save_references(self._place(prompt), animator.images(wanted, self.count))


def generate_and_score(
    template: AnimationConfig, sample: Sample, models: AnimationModels, references: References
) -> tuple[dict[str, Any], bool]:
    """Generates the animation if it does not exist yet, then scores its file. A failure is a row with a reason; the
    flag says whether it is transient (memory, disk), so that another run may succeed."""
    animation = template.replace(prompt=sample.full_prompt, seed=sample.seed)
    try:
        pictures = references.of(sample.prompt)
        if not has_animation(references.folder, sample):
            frames = references.animator.using(models).frames(animation)
            write_animation(references.folder, sample, frames, animation)
        return score_sample(references.folder, sample, animation.fps, references.encoder, pictures), False
    except torch.AcceleratorError as error:  # the device is in a state in which every later sample fails too
        raise TransientError(
            f"The GPU failed: {str(error).splitlines()[0]}",
            "Samples that are done are kept.",
            "Run the same command again.",
        ) from None
    except FAILURES as error:
        reason = str(error) if isinstance(error, AnimateflowError) else f"{type(error).__name__}: {error}"
        transient = isinstance(error, TransientError) or is_out_of_memory(error) or is_disk_full(error)
    if transient:
        free_memory()
    log.warning("%s: %s", sample.stem, reason)
    return failed_sample(sample, references.encoder, reason), transient
