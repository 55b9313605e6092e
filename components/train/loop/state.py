"""The state of a training in a checkpoint: weights, optimizer, EMA, and the counters of the loop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.train.loop import checkpoints
from components.train.step import Stepper

NUMBER = " (a number)"


@dataclass
class Progress:
    """The state of a run that is not tensors; part of every checkpoint."""

    step: int = 0
    skipped: int = 0
    window: list[float] = field(default_factory=list)
    """Losses since the last point of the curve."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shuffle_gaps: list[tuple[int, float]] = field(default_factory=list)
    held_out_loss: float | None = None
    """Mean over the bands, if it was measured at this step."""

    def smooth_loss(self) -> float:
        """Mean loss of the steps since the last point of the curve."""
        recent = self.window or [loss for _, loss in self.losses[-1:]]
        return sum(recent) / len(recent) if recent else math.nan

    def figures(self) -> dict[str, Any]:
        """What a run has come to, for its record: the loss at its end, what was held out at its beginning and end."""
        tail = [loss for _, loss in self.losses[-10:]]
        found: dict[str, Any] = {"loss": sum(tail) / len(tail) if tail else None}
        if self.held_out:
            found |= {"held_out_loss_before": self.held_out[0][1], "held_out_loss": self.held_out[-1][1]}
        if self.shuffle_gaps:
            found |= {
                "frame_shuffle_gap_before": self.shuffle_gaps[0][1],
                "frame_shuffle_gap": self.shuffle_gaps[-1][1],
            }
        return found


def save(writer: checkpoints.Writer, stepper: Stepper, progress: Progress) -> None:
    """
    Raises:
        UserError: the checkpoint before this one could not be written.
    """
    tensors: dict[str, dict[str, Tensor]] = {"weights": dict(stepper.task.trainable), "optimizer": {}}
    for name, parameter in stepper.task.trainable.items():
        for key, value in stepper.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors["optimizer"][f"{key}:{name}"] = value
            else:  # bitsandbytes counts its steps in a plain number
                tensors["optimizer"][f"{key}{NUMBER}:{name}"] = torch.tensor(value)
    if stepper.ema is not None:
        tensors["ema"] = dict(zip(stepper.task.trainable, stepper.ema, strict=True))
    writer.save(progress.step, tensors, asdict(progress))


def restore(folder: Path, stepper: Stepper) -> Progress:
    """Loads the newest checkpoint in `folder`; without one, the state of step 0."""
    found = checkpoints.newest(folder)
    if found is None:
        return Progress()
    names, device = list(stepper.task.trainable), stepper.process.device
    stepper.set_parameters([found.tensors["weights"][name] for name in names])
    for key, value in found.tensors["optimizer"].items():
        kind, name = key.split(":", 1)
        state_of = stepper.optimizer.state[stepper.task.trainable[name]]
        state_of[kind.removesuffix(NUMBER)] = value.item() if kind.endswith(NUMBER) else value.to(device)
    if stepper.ema is not None:
        stepper.ema = [found.tensors["ema"][name].to(device) for name in names]
    state: dict[str, Any] = found.state
    for name in ("losses", "held_out", "shuffle_gaps"):
        state[name] = [tuple(each) for each in state[name]]
    stepper.skipped.fill_(state["skipped"])
    return Progress(**state)
