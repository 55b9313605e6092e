"""Checks that end a training: too many non-finite steps, a diverging loss, parameters that do not change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infra.errors import WorkError
from infra.logs import get_logger

UPDATE_CHECK_STEP = 10
DIVERGED = 5.0  # times the lowest point of the loss curve, and above 1.5: predicting zeros gives 1
log = get_logger("components")


def check_finite(step: int, skipped: int, before: int, allowed: int, losses: Sequence[float]) -> None:
    """Warns of steps that were skipped since the last check.

    Raises:
        WorkError: there were more than are allowed.
    """
    if skipped > before:
        log.warning(
            "Steps up to %d: %d with a loss or gradient that is not finite, skipped (losses %s).",
            step, skipped - before, ", ".join(f"{loss:.3g}" for loss in losses[-4:]),
        )  # fmt: skip
    if skipped > allowed:
        raise WorkError(
            f"{skipped} steps had a loss or gradient that is not finite.",
            "The training has diverged, or the latents hold NaN. The last checkpoint is kept.",
            "Lower the learning rate or lengthen the warm-up; check the cache with `animateflow cache verify`.",
        )


def check_divergence(step: int, curve: Sequence[tuple[int, float]]) -> None:
    """
    Raises:
        WorkError: the newest point of the loss curve is far above its lowest.
    """
    losses = [loss for _, loss in curve]
    if len(losses) > 2 and losses[-1] > 1.5 and losses[-1] > DIVERGED * min(losses[:-1]):
        raise WorkError(
            f"The loss diverged: {losses[-1]:.3g} at step {step}, after {min(losses[:-1]):.3g}.",
            "The training has diverged. The last checkpoint is kept.",
            "Lower train.learning_rate, or lengthen train.warmup_steps.",
        )


class UpdateCheck:
    """Checks that training changes the parameters; made before the first step, called after `UPDATE_CHECK_STEP`."""

    def __init__(self, title: str, parameters: Sequence[nn.Parameter]) -> None:
        self._title, self._parameters = title, parameters
        self._before = self._norms()

    def check(self) -> None:
        """
        Raises:
            WorkError: none of them has changed.
        """
        if all(bool(old == new) for old, new in zip(self._before, self._norms(), strict=True)):
            raise WorkError(
                f"After {UPDATE_CHECK_STEP} steps no parameter of the {self._title} has changed.",
                "Nothing is learned: the learning rate is too small, or no gradient arrives.",
                "Raise train.learning_rate or shorten train.warmup_steps.",
            )

    def _norms(self) -> list[Tensor]:
        """In fp64, one parameter after the other: a step moves an fp32 norm by less than its last digit."""
        return [torch.linalg.vector_norm(p.detach(), dtype=torch.float64) for p in self._parameters]
