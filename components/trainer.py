"""The trainer of all three stages: the same loop over whatever parameters a stage leaves trainable.

Nothing random has state: noise, timesteps, dropped captions and clips are functions of (seed, number of the sample), so
that a run is resumed by one integer and a stopped and resumed run ends with the bits of an unbroken one (on the CPU;
CUDA kernels may differ in the last bits).

Ranks that train together (`components.ranks`) go the same way step by step; only rank 0 measures, reports and writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components import checkpoints
from components.batch import BatchSource, ClipBatch
from components.held_out import Measured, measure
from components.ranks import alone, any_of_all, check_same, place_of, wait_for_all
from components.train_config import TrainConfig as TrainConfig
from components.train_config import learning_rate_at
from components.train_log import Scalars, StepReport, StopRequest, plot_loss, stop_signals
from components.train_step import Stepper
from components.train_step import Task as Task
from infra.errors import WorkError
from infra.logs import get_logger
from infra.worker_talk import stop_asked

DEAD_AFTER = 10
DIVERGED = 5.0  # times the best mean loss of a window so far, and above 1.5: predicting nothing is 1
log = get_logger("components")


@dataclass
class Progress:
    """All of a run's state beside tensors; goes into every checkpoint."""

    step: int = 0
    skipped: int = 0
    window: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shuffle_gaps: list[tuple[int, float]] = field(default_factory=list)
    held_out_loss: float | None = None
    """Mean of the last measurement, if that was of this very step."""


@dataclass(frozen=True)
class TrainResult:
    """`weights` are the averaged ones where EMA is on, on the CPU, by their names in the weight file."""

    weights: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, Any]


class TrainingStoppedError(WorkError):
    """The run was asked to stop, has saved, and goes on when started again."""


def train(
    config: TrainConfig,
    task: Task,
    source: BatchSource,
    folder: Path,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainResult:
    """Trains to the last step, from the newest checkpoint in `folder` where there is one.

    Raises:
        TrainingStoppedError: Ctrl-C or SIGTERM; the state is saved.
        UserError: a checkpoint cannot be written.
        WorkError: too many steps with a non-finite loss, a loss that runs away, or parameters that do not move.
    """
    return _Run(config, task, source, folder, on_step or (lambda report: None)).run()


class _Run:
    def __init__(
        self, config: TrainConfig, task: Task, source: BatchSource, folder: Path, on_step: Callable[[StepReport], None]
    ) -> None:
        self.config, self.task, self.source, self.folder = config, task, source, folder
        self.place = place_of(config.device)
        self.first_rank = self.place.rank == 0
        self.on_step = on_step if self.first_rank else lambda report: None
        self.stepper = Stepper(config, task, self.place)
        self.progress = Progress()
        measured = config.held_out_clips if self.first_rank else 0
        self.held_out = source.held_out(measured, task.frames) if measured else None
        self.writer = checkpoints.Writer(folder / "checkpoints", config.keep_checkpoints)
        self.pending: list[Tensor] = []
        self.scalars: Scalars | None = None
        # On CUDA a look at a number waits for the device; on the CPU it costs nothing.
        self.look_every = config.log_every_steps if self.place.device.type == "cuda" else 1

    def run(self) -> TrainResult:
        self._restore()
        check_same(self.progress.step, self.place)
        norms = self._norms() if self.progress.step == 0 else None
        started, first = time.monotonic(), self.progress.step
        parts = self.config.gradient_accumulation
        per_step = self.config.batch_size * parts
        self.scalars = Scalars(self.folder / "logs", first) if self.first_rank else None
        with stop_signals() as stop, self.scalars or nullcontext():
            if first == 0:
                self._measure()
            batches = self.source.batches(
                self.config.batch_size, self.task.frames, self.config.seed, first * parts,
                self.place.rank, self.place.ranks,
            )  # fmt: skip
            waited = 0.0
            while self.progress.step < self.config.steps:
                asked = time.monotonic()
                taken = [next(batches) for _ in range(parts)]
                waited += time.monotonic() - asked
                self._step(taken)
                elapsed = time.monotonic() - started
                rate = (self.progress.step - first) * per_step / elapsed
                self.on_step(self._report(rate, waited / elapsed))
                if norms is not None and self.progress.step == DEAD_AFTER:
                    self._check_alive(norms)
                self._save_or_stop(stop)
        seconds = time.monotonic() - started
        self.writer.wait()
        if self.first_rank:
            plot_loss(self.folder / "loss.png", self.task.title, self.progress.losses, self.progress.held_out)
        return self._result((self.config.steps - first) * per_step, seconds)

    def _step(self, batches: list[ClipBatch]) -> None:
        self.pending.append(self.stepper.step(self.progress.step, batches))
        self.progress.step += 1
        self.progress.held_out_loss = None
        if self.progress.step % self.look_every == 0 or self.progress.step == self.config.steps:
            self._look()

    def _look(self) -> None:
        """Reads what the device has counted since the last look."""
        if not self.pending:
            return
        losses = torch.stack(self.pending).tolist()
        self.pending.clear()
        self.progress.window += [loss for loss in losses if math.isfinite(loss)]
        skipped = int(self.stepper.skipped)
        if skipped > self.progress.skipped:
            log.warning(
                "Steps up to %d: %d with a loss or gradient that is not finite, skipped (losses %s).",
                self.progress.step, skipped - self.progress.skipped, ", ".join(f"{loss:.3g}" for loss in losses[-4:]),
            )  # fmt: skip
            self.progress.skipped = skipped
        if skipped > self.config.skipped_steps_max:
            raise WorkError(
                f"{skipped} steps had a loss or gradient that is not finite.",
                "The training has diverged, or the latents hold NaN. The last checkpoint is kept.",
                "Lower the learning rate or lengthen the warm-up; check the cache with `animateflow cache verify`.",
            )

    def _norms(self) -> list[Tensor]:
        return [norm.clone() for norm in torch._foreach_norm([p.detach().double() for p in self.stepper.parameters])]

    def _check_alive(self, before: list[Tensor]) -> None:
        self._look()
        moved = any(bool(old != new) for old, new in zip(before, self._norms(), strict=True))
        if not moved and self.progress.skipped < DEAD_AFTER:
            raise WorkError(
                f"After {DEAD_AFTER} steps no parameter of the {self.task.title} has moved.",
                "Nothing is being learnt: the learning rate is too small for the numbers, or no gradient arrives.",
                "Raise train.learning_rate or shorten train.warmup_steps.",
            )

    def _check_divergence(self) -> None:
        losses = [loss for _, loss in self.progress.losses]
        if len(losses) > 2 and losses[-1] > 1.5 and losses[-1] > DIVERGED * min(losses[:-1]):
            raise WorkError(
                f"The loss ran away: {losses[-1]:.3g} at step {self.progress.step}, after {min(losses[:-1]):.3g}.",
                "The training has diverged. The last checkpoint is kept.",
                "Lower train.learning_rate, or lengthen train.warmup_steps.",
            )

    def _smooth(self) -> float:
        recent = self.progress.window or [loss for _, loss in self.progress.losses[-1:]]
        return sum(recent) / len(recent) if recent else math.nan

    def _report(self, rate: float, wait: float) -> StepReport:
        step, state = self.progress.step, self.progress
        last = step == self.config.steps
        loss = state.window[-1] if state.window else math.nan
        if (step % self.config.log_every_steps == 0 or last) and state.window:
            state.losses.append((step, self._smooth()))
            self._write(
                step,
                {
                    "train/loss": state.losses[-1][1],
                    "train/learning_rate": learning_rate_at(self.config, step - 1),
                    "train/skipped_steps": state.skipped,
                    "speed/samples_per_second": rate,
                    "speed/data_wait_share": wait,
                },
            )
            state.window.clear()
            self._check_divergence()
        measured = self._measure() if step % self.config.held_out_every_steps == 0 or last else None
        held_out = None if measured is None else measured.mean
        return StepReport(step, self.config.steps, loss, held_out, rate, wait)

    def _measure(self) -> Measured | None:
        if self.held_out is None:
            return None
        with alone(self.stepper):
            found = measure(self.stepper, self.held_out)
        step = self.progress.step
        self.progress.held_out.append((step, found.saved))
        self.progress.held_out_loss = found.mean
        values = {"held_out/mean": found.mean} | {f"held_out/{name}": loss for name, loss in found.saved.items()}
        if found.averaged is not None:
            values["held_out/mean, not averaged"] = sum(found.bands.values()) / len(found.bands)
        if found.shuffle_gap is not None:
            self.progress.shuffle_gaps.append((step, found.shuffle_gap))
            values["held_out/frame_shuffle_gap"] = found.shuffle_gap
        self._write(step, values)
        return found

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self.scalars is not None:
            self.scalars.add(step, values)

    def _save_or_stop(self, stop: StopRequest) -> None:
        step = self.progress.step
        if step == self.config.steps:
            return
        looked = step % self.look_every == 0 or self.place.ranks == 1
        stops = looked and any_of_all(bool(stop.name or stop_asked(self.folder)), self.place)
        if self.first_rank and (stops or step % self.config.checkpoint_every_steps == 0):
            self._save()
        if stops:
            self.writer.wait()
            wait_for_all(self.place)  # the first error of a rank ends them all
            reason = stop.name or stop_asked(self.folder) or "another worker was"
            raise TrainingStoppedError(
                f"{self.task.title} stopped at step {step} of {self.config.steps} ({reason}).",
                "Its state is saved.",
                "Run the same command again to go on from there.",
            )

    def _save(self) -> None:
        self._look()
        names, stepper = list(self.task.trainable), self.stepper
        tensors: dict[str, dict[str, Tensor]] = {"weights": dict(self.task.trainable), "optimizer": {}}
        for name, parameter in self.task.trainable.items():
            for key, value in stepper.optimizer.state[parameter].items():
                tensors["optimizer"][f"{key}:{name}"] = value
        if stepper.ema is not None:
            tensors["ema"] = dict(zip(names, stepper.ema, strict=True))
        self.writer.save(self.progress.step, tensors, asdict(self.progress))

    def _restore(self) -> None:
        found = checkpoints.newest(self.folder / "checkpoints")
        if found is None:
            return
        names, stepper, device = list(self.task.trainable), self.stepper, self.place.device
        stepper.put([found.tensors["weights"][name] for name in names])
        for key, value in found.tensors["optimizer"].items():
            kind, name = key.split(":", 1)
            stepper.optimizer.state[self.task.trainable[name]][kind] = value.to(device)
        if stepper.ema is not None:
            stepper.ema = [found.tensors["ema"][name].to(device) for name in names]
        state = found.state
        for name in ("losses", "held_out", "shuffle_gaps"):
            state[name] = [tuple(each) for each in state[name]]
        self.progress = Progress(**state)
        stepper.skipped.fill_(self.progress.skipped)
        log.info("%s goes on from step %d of %d.", self.task.title, self.progress.step, self.config.steps)

    def _result(self, samples: int, seconds: float) -> TrainResult:
        stepper, state = self.stepper, self.progress
        weights = stepper.ema if stepper.ema is not None else [parameter.detach() for parameter in stepper.parameters]
        tail = [loss for _, loss in state.losses[-10:]]
        metrics: dict[str, Any] = {"loss": sum(tail) / len(tail) if tail else None}
        if samples:
            metrics["samples_per_second"] = round(samples / seconds, 3)
        if state.held_out:
            metrics["held_out_loss_before"] = state.held_out[0][1]
            metrics["held_out_loss"] = state.held_out[-1][1]
        if state.shuffle_gaps:
            metrics["frame_shuffle_gap_before"] = state.shuffle_gaps[0][1]
            metrics["frame_shuffle_gap"] = state.shuffle_gaps[-1][1]
        counts = {
            "steps": state.step,
            "skipped_steps": state.skipped,
            "trainable_parameters": sum(parameter.numel() for parameter in stepper.parameters),
        }
        plain = [weight.detach().to("cpu", copy=True).contiguous() for weight in weights]
        return TrainResult(dict(zip(self.task.trainable, plain, strict=True)), counts, metrics)
