"""The trainer of every stage: one loop over the parameters that the stage trains.

Nothing random has state: noise, timesteps, dropped captions and clips are functions of (seed, number of the sample), so
that a run is resumed by one integer and a stopped and resumed run ends with the bits of an unbroken one (on the CPU;
CUDA kernels may differ in the last bits).

Ranks that train together (`components.train.distributed`) take the same steps; only rank 0 measures, reports
and writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.train.batch import BatchSource, ClipBatch
from components.train.config import TrainConfig, learning_rate_at
from components.train.distributed import any_rank, barrier, check_same_step, this_process, without_ddp
from components.train.loop import checkpoints, health_checks
from components.train.loop import state as train_state
from components.train.loop.stop_signals import StopRequest, stop_signals
from components.train.report.held_out import averaged_weights, measure
from components.train.report.log import Curves, StepReport, plot_loss
from components.train.report.meter import Meter
from components.train.report.samples import Samples
from components.train.step import Stepper, Task
from infra import runtime
from infra.errors import WorkError
from infra.logs import get_logger
from infra.memory import free_memory, is_out_of_memory, memory_of
from infra.workers.messages import stop_requested

log = get_logger("components")


@dataclass(frozen=True)
class TrainResult:
    """`weights` are the averaged ones where EMA is on, on the CPU, by their names in the weight file."""

    weights: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, Any]
    best: dict[str, Tensor] | None = None
    """The weights of the checkpoint with the lowest held-out loss, where that is lower than at the end."""


class TrainingStoppedError(WorkError):
    """The run was stopped by a signal and has saved a checkpoint; the same call resumes it."""


def train(
    config: TrainConfig,
    task: Task,
    source: BatchSource,
    folder: Path,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainResult:
    """Trains to the last step, from the newest checkpoint in `folder` if there is one.

    Raises:
        TrainingStoppedError: Ctrl-C or SIGTERM; the state is saved.
        UserError: a checkpoint cannot be written, or a package that the config asks for is not there.
        WorkError: too many steps with a non-finite loss, a loss that diverges, parameters that do not move, or no
            memory left.
    """
    runtime.keep_freed_memory()
    try:
        return _Run(config, task, source, folder, on_step or (lambda report: None)).run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    raise _out_of_memory(config, task)


def _out_of_memory(config: TrainConfig, task: Task) -> WorkError:
    height, width = task.latent_size
    advice = "Lower train.batch_size and raise train.gradient_accumulation as much, with another --out."
    if config.activation_checkpointing != "full":
        advice = "Set train.activation_checkpointing=full and run the same command again to resume; if that is not "
        advice += "enough, lower train.batch_size and raise train.gradient_accumulation as much, with another --out."
    return WorkError(
        f"Out of memory while training the {task.title}: batch_size={config.batch_size}, frames={task.frames}, latents "
        f"of {width}x{height}, activation_checkpointing={config.activation_checkpointing}.",
        f"{memory_of(this_process(config.device).device)} now. The last checkpoint is kept.",
        advice,
    )


class _Run:
    def __init__(
        self, config: TrainConfig, task: Task, source: BatchSource, folder: Path, on_step: Callable[[StepReport], None]
    ) -> None:
        self.config, self.task, self.source, self.folder = config, task, source, folder
        self.process = this_process(config.device)
        self.first_rank = self.process.rank == 0
        self.on_step = on_step if self.first_rank else lambda report: None
        self.stepper = Stepper(config, task, self.process)
        self.progress = train_state.Progress()
        measured = config.held_out_clips if self.first_rank else 0
        self.held_out = source.held_out(measured, task.frames) if measured else None
        self.samples = self._samples() if self.first_rank else None
        self.writer = checkpoints.Writer(folder / "checkpoints", config.keep_checkpoints)
        self.pending: list[Tensor] = []
        self.curves: Curves | None = None
        self.pictures: list[Path] = []
        self.untimed_seconds = 0.0  # spent on held-out losses and samples
        # Steps between two reads from the device: on CUDA a read waits for the device, on the CPU it is free.
        self.sync_every = config.log_every_steps if self.process.device.type == "cuda" else 1

    def _samples(self) -> Samples | None:
        prompts = self.config.sample_prompts
        if not prompts and self.held_out is not None:
            prompts = tuple(self.held_out.captions[:2])
        if not prompts or not self.config.sample_every_steps or self.task.draw is None:
            return None
        return Samples(self.folder / "samples", self.stepper, prompts)

    def run(self) -> TrainResult:
        self.progress = train_state.restore(self.folder / "checkpoints", self.stepper)
        first = self.progress.step
        if first:
            log.info("%s resumes from step %d of %d.", self.task.title, first, self.config.steps)
        check_same_step(first, self.process)
        update_check = health_checks.UpdateCheck(self.task.title, self.stepper.parameters) if first == 0 else None
        parts = self.config.gradient_accumulation
        self.meter = Meter(self.stepper)
        self.curves = Curves(self.folder / "logs", first, self.config, self.task.title) if self.first_rank else None
        with stop_signals() as stop, self.curves or nullcontext():
            if first == 0:
                self._measure()
                self._draw()
            batches = self.source.batches(
                self.config.batch_size, self.task.frames, self.config.seed, first * parts,
                self.process.rank, self.process.world_size,
            )  # fmt: skip
            started, self.untimed_seconds, waited = time.monotonic(), 0.0, 0.0
            while self.progress.step < self.config.steps:
                asked = time.monotonic()
                taken = [next(batches) for _ in range(parts)]
                waited += time.monotonic() - asked
                with self.meter.recording() if self.progress.step == first else nullcontext():
                    self._step(taken)
                self._report(first, time.monotonic() - started, waited)
                if update_check is not None and self.progress.step == health_checks.UPDATE_CHECK_STEP:
                    self._sync()
                    if self.progress.skipped < health_checks.UPDATE_CHECK_STEP:
                        update_check.check()
                self._save_or_stop(stop)
        seconds = time.monotonic() - started - self.untimed_seconds
        self.writer.wait()
        return self._result((self.config.steps - first) * parts * self.config.batch_size, seconds)

    def _step(self, batches: list[ClipBatch]) -> None:
        self.pending.append(self.stepper.step(self.progress.step, batches))
        self.progress.step += 1
        self.progress.held_out_loss = None
        if self.progress.step % self.sync_every == 0 or self.progress.step == self.config.steps:
            self._sync()

    def _sync(self) -> None:
        """Reads losses and counters from the device, accumulated since the last read."""
        if not self.pending:
            return
        losses = torch.stack(self.pending).tolist()
        self.pending.clear()
        self.progress.window += [loss for loss in losses if math.isfinite(loss)]
        skipped, before = int(self.stepper.skipped), self.progress.skipped
        self.progress.skipped = skipped
        health_checks.check_finite(self.progress.step, skipped, before, self.config.skipped_steps_max, losses)

    def _report(self, first: int, elapsed: float, waited: float) -> None:
        """Writes the curves, measures and draws samples when due, and reports the step."""
        step, state, config = self.progress.step, self.progress, self.config
        last = step == config.steps
        trained = max(1e-9, elapsed - self.untimed_seconds)
        rate = (step - first) * config.batch_size * config.gradient_accumulation / trained
        logs = step % config.log_every_steps == 0 or last
        loss = state.window[-1] if state.window else math.nan
        mfu = self.meter.mfu(rate) if logs and self.first_rank else None
        if logs and state.window:
            state.losses.append((step, state.smooth_loss()))
            state.window.clear()
            self._write(
                step,
                {
                    "train/loss": state.losses[-1][1],
                    "train/learning_rate": learning_rate_at(config, step - 1),
                    "train/skipped_steps": state.skipped,
                    "speed/samples_per_second": rate,
                    "speed/data_wait_share": waited / trained,
                    "memory/peak_gib": self.meter.peak_gib(),
                    **({} if mfu is None else {"speed/model_flops_utilisation": mfu}),
                },
            )
            health_checks.check_divergence(step, state.losses)
        held_out = self._measure() if step % config.held_out_every_steps == 0 or last else None
        if config.sample_every_steps and (step % config.sample_every_steps == 0 or last):
            self._draw()
        pictures, self.pictures = tuple(str(path) for path in self.pictures), []
        peak = self.meter.peak_gib() if logs else None
        predicted, wait = self.meter.predicted_gib, waited / trained
        self.on_step(StepReport(step, config.steps, loss, held_out, rate, wait, mfu, peak, predicted, pictures))

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        """Work of rank 0 alone; its time does not count as training."""
        began = time.monotonic()
        # Compiled blocks run eagerly here: other batch sizes and frame counts would each be compiled anew.
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
        with without_ddp(self.stepper), eager:
            yield
        self.untimed_seconds += time.monotonic() - began

    def _measure(self) -> float | None:
        if self.held_out is None:
            return None
        with self._untimed():
            found = measure(self.stepper, self.held_out)
        step, state = self.progress.step, self.progress
        state.held_out.append((step, found.saved))
        state.held_out_loss = found.mean
        values = {"held_out/mean": found.mean} | {f"held_out/{name}": loss for name, loss in found.saved.items()}
        if found.averaged is not None:
            values["held_out/mean, not averaged"] = sum(found.bands.values()) / len(found.bands)
        if found.shuffle_gap is not None:
            state.shuffle_gaps.append((step, found.shuffle_gap))
            values["held_out/frame_shuffle_gap"] = found.shuffle_gap
        self._write(step, values)
        with self._untimed():
            self._plot()
        self.pictures.append(self.folder / "loss.png")
        return found.mean

    def _plot(self) -> None:
        state = self.progress
        plot_loss(self.folder / "loss.png", self.task.title, state.losses, state.held_out, state.shuffle_gaps)

    def _draw(self) -> None:
        if self.samples is not None:
            with self._untimed(), averaged_weights(self.stepper):
                self.pictures.append(self.samples.make(self.progress.step))

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if self.curves is not None:
            self.curves.add(step, values)

    def _save_or_stop(self, stop: StopRequest) -> None:
        step = self.progress.step
        if step == self.config.steps:
            return
        synced = step % self.sync_every == 0 or self.process.world_size == 1
        stops = synced and any_rank(bool(stop.name or stop_requested(self.folder)), self.process)
        if self.first_rank and (stops or step % self.config.checkpoint_every_steps == 0):
            self._sync()
            train_state.save(self.writer, self.stepper, self.progress)
        if stops:
            self.writer.wait()
            barrier(self.process)  # the first error of a rank ends them all
            reason = stop.name or stop_requested(self.folder) or "another worker was"
            raise TrainingStoppedError(
                f"{self.task.title} stopped at step {step} of {self.config.steps} ({reason}).",
                "A checkpoint is saved.",
                "Run the same command again to resume.",
            )

    def _result(self, samples: int, seconds: float) -> TrainResult:
        stepper, state = self.stepper, self.progress
        if self.first_rank and self.held_out is None:  # else the last measurement has drawn it
            self._plot()
        weights = stepper.ema if stepper.ema is not None else [parameter.detach() for parameter in stepper.parameters]
        metrics = state.figures()
        if samples:
            rate = samples / seconds
            metrics["samples_per_second"] = round(rate, 3)
            if (mfu := self.meter.mfu(rate)) is not None:
                metrics["model_flops_utilisation"] = round(mfu, 3)
            metrics["peak_memory_gib"] = round(self.meter.peak_gib(), 2)
            metrics["predicted_memory_gib"] = round(self.meter.predicted_gib, 2)
        counts = {
            "steps": state.step,
            "skipped_steps": state.skipped,
            "trainable_parameters": sum(parameter.numel() for parameter in stepper.parameters),
        }
        best = checkpoints.best(self.folder / "checkpoints", state.held_out_loss) if self.first_rank else None
        if best is not None:
            metrics["best_step"], metrics["best_held_out_loss"] = best[:2]
        plain = [weight.detach().to("cpu", copy=True).contiguous() for weight in weights]
        named = dict(zip(self.task.trainable, plain, strict=True))
        return TrainResult(named, counts, metrics, best and best[2])
