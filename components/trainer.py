"""The trainer of all three stages: the same loop over whatever parameters a stage leaves trainable.

Nothing random has state: noise, timesteps and dropped captions of a step are a function of (seed, step), and so are the
batches, so that a run is resumed by one integer and a stopped and resumed run ends with the bits of an unbroken one
(on the CPU; CUDA kernels may differ in the last bits).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components import checkpoints
from components.batch import BatchSource, ClipBatch
from components.noise import TIMESTEPS, alpha_bars
from components.objective import Predict, draw, noise_errors, weighted_mean
from components.train_config import TrainConfig as TrainConfig
from components.train_config import learning_rate_at
from components.train_log import Scalars, StepReport, StopRequest, plot_loss, stop_signals
from infra.errors import WorkError
from infra.logs import get_logger, progress
from infra.runtime import pick_device

BANDS = 4
log = get_logger("components")


@dataclass(frozen=True)
class Task:
    """What one stage trains: `trainable` parameters by their names in the weight file, all others frozen."""

    title: str
    unet: nn.Module
    predict: Predict
    trainable: dict[str, nn.Parameter]
    text: Callable[[list[str]], Tensor]
    """Captions to text states (B, L, D)."""
    latent_scale: float
    """The VAE's scaling factor; the cache holds unscaled latents."""
    frames: int


@dataclass
class Progress:
    """All of a run's state beside tensors; goes into every checkpoint."""

    step: int = 0
    skipped: int = 0
    window: list[float] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult:
    """`weights` are the averaged ones where EMA is on, on the CPU, by their names in the weight file."""

    weights: dict[str, Tensor]
    counts: dict[str, int]
    metrics: dict[str, Any]


class TrainingStoppedError(WorkError):
    """The run was asked to stop, has saved, and goes on when started again."""


def generator_of(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator that is a function of its arguments; seeds that differ by one give unrelated noise."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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
        WorkError: too many steps with a non-finite loss.
    """
    return _Run(config, task, source, folder, on_step or (lambda report: None)).run()


class _Run:
    def __init__(
        self, config: TrainConfig, task: Task, source: BatchSource, folder: Path, on_step: Callable[[StepReport], None]
    ) -> None:
        self.config, self.task, self.source, self.folder, self.on_step = config, task, source, folder, on_step
        self.device = pick_device(config.device)
        self.autocast = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")
        self.alpha_bar = alpha_bars(config.beta_schedule).to(self.device)
        task.unet.to(self.device).train()
        self.parameters = list(task.trainable.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema_decay is not None else None
        self.progress = Progress()
        self.held_out = source.held_out(config.held_out_clips, task.frames) if config.held_out_clips else None

    def run(self) -> TrainResult:
        self._restore()
        started, first = time.monotonic(), self.progress.step
        per_step = self.config.batch_size * self.config.gradient_accumulation
        with (
            stop_signals() as stop,
            Scalars(self.folder / "logs", first) as scalars,
            progress(self.config.steps, self.task.title, "step", first) as bar,
        ):
            if first == 0:
                self._measure(scalars)
            batches = self.source.batches(
                self.config.batch_size, self.task.frames, self.config.seed, first * self.config.gradient_accumulation
            )
            waited = 0.0
            while self.progress.step < self.config.steps:
                loss, seconds = self._step(batches)
                waited += seconds
                elapsed = time.monotonic() - started
                rate = (self.progress.step - first) * per_step / elapsed
                report = self._report(loss, rate, waited / elapsed, scalars)
                bar.set_postfix(
                    {
                        "loss": f"{self._smooth():.4f}",
                        "samples/s": f"{rate:.1f}",
                        "data wait": f"{waited / elapsed:.0%}",
                    },
                    refresh=False,
                )
                bar.update()
                self.on_step(report)
                self._save_or_stop(stop)
        training_seconds = time.monotonic() - started
        plot_loss(self.folder / "loss.png", self.task.title, self.progress.losses, self.progress.held_out)
        return self._result((self.config.steps - first) * per_step, training_seconds)

    def _step(self, batches: Iterator[ClipBatch]) -> tuple[float, float]:
        """One optimizer step; returns its loss and the seconds spent waiting for data."""
        step, parts = self.progress.step, self.config.gradient_accumulation
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.config, step)
        loss, waited = 0.0, 0.0
        for part in range(parts):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            share = self._loss(batch, generator_of(self.config.seed, step, part)) / parts
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.item()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if math.isfinite(loss) and bool(torch.isfinite(norm)):
            self.optimizer.step()
            self._average(step)
            self.progress.window.append(loss)
        else:
            self._skip(step, loss)
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return loss, waited

    def _loss(self, batch: ClipBatch, generator: torch.Generator) -> Tensor:
        chance = draw(batch.latents_BCFhw.shape, generator, self.config.caption_dropout)
        captions = ["" if drop else text for text, drop in zip(batch.captions, chance.drop_B.tolist(), strict=True)]
        t_B = chance.t_B.to(self.device)
        errors = self._errors(batch, captions, chance.eps_BCFhw, t_B)
        return weighted_mean(errors, t_B, self.alpha_bar, self.config.min_snr_gamma)

    def _errors(self, batch: ClipBatch, captions: list[str], eps_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        z_0 = batch.latents_BCFhw.to(self.device, torch.float32) * self.task.latent_scale
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return noise_errors(
                self.task.predict, z_0, self.task.text(captions), eps_BCFhw.to(self.device), t_B, self.alpha_bar
            )

    def _average(self, step: int) -> None:
        if self.ema is not None and self.config.ema_decay is not None:
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.ema, [parameter.detach() for parameter in self.parameters], 1 - decay)

    def _skip(self, step: int, loss: float) -> None:
        self.progress.skipped += 1
        log.warning("Step %d has a loss of %s or a gradient that is not finite: skipped.", step + 1, loss)
        if self.progress.skipped > self.config.skipped_steps_max:
            raise WorkError(
                f"{self.progress.skipped} steps had a loss or gradient that is not finite.",
                "The training has diverged, or the latents hold NaN. The last checkpoint is kept.",
                "Lower the learning rate or lengthen the warm-up; check the cache with `animateflow cache verify`.",
            )

    def _smooth(self) -> float:
        recent = self.progress.window or [loss for _, loss in self.progress.losses[-1:]]
        return sum(recent) / len(recent) if recent else math.nan

    def _report(self, loss: float, rate: float, wait: float, scalars: Scalars) -> StepReport:
        step, state = self.progress.step, self.progress
        last = step == self.config.steps
        if (step % self.config.log_every_steps == 0 or last) and state.window:
            state.losses.append((step, self._smooth()))
            scalars.add(
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
        held_out = self._measure(scalars) if step % self.config.held_out_every_steps == 0 or last else None
        return StepReport(step, self.config.steps, loss, held_out, rate, wait)

    @torch.no_grad()
    def _measure(self, scalars: Scalars) -> float | None:
        """Held-out loss by timestep band, always with the same noise, of the weights that would be saved."""
        if self.held_out is None:
            return None
        live = [parameter.detach().clone() for parameter in self.parameters] if self.ema is not None else None
        if self.ema is not None:
            self._put(self.ema)
        bands = {}
        size, width = self.config.batch_size, TIMESTEPS // BANDS
        eps = torch.randn(self.held_out.latents_BCFhw.shape, generator=generator_of(0, "held-out"))
        for band in range(BANDS):
            errors = []
            for i in range(0, len(eps), size):
                part = ClipBatch(self.held_out.latents_BCFhw[i : i + size], self.held_out.captions[i : i + size], [])
                t_B = torch.full((len(part.captions),), band * width + width // 2, device=self.device)
                errors.append(self._errors(part, part.captions, eps[i : i + size], t_B))
            bands[f"t {band * width}-{(band + 1) * width - 1}"] = torch.cat(errors).mean().item()
        if live is not None:
            self._put(live)
        mean = sum(bands.values()) / BANDS
        self.progress.held_out.append((self.progress.step, bands))
        scalars.add(self.progress.step, {"held_out/mean": mean} | {f"held_out/{name}": bands[name] for name in bands})
        return mean

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def _save_or_stop(self, stop: StopRequest) -> None:
        step = self.progress.step
        due = step % self.config.checkpoint_every_steps == 0 and step < self.config.steps
        if (due or stop.name) and step < self.config.steps:
            self._save()
        if stop.name and step < self.config.steps:
            raise TrainingStoppedError(
                f"{self.task.title} stopped at step {step} of {self.config.steps} ({stop.name}).",
                "Its state is saved.",
                "Run the same command again to go on from there.",
            )

    def _save(self) -> None:
        names = list(self.task.trainable)
        tensors: dict[str, dict[str, Tensor]] = {"weights": dict(self.task.trainable), "optimizer": {}}
        for name, parameter in self.task.trainable.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors["optimizer"][f"{key}:{name}"] = value
        if self.ema is not None:
            tensors["ema"] = dict(zip(names, self.ema, strict=True))
        keep = self.config.keep_checkpoints
        checkpoints.save(self.folder / "checkpoints", self.progress.step, tensors, asdict(self.progress), keep)

    def _restore(self) -> None:
        found = checkpoints.newest(self.folder / "checkpoints")
        if found is None:
            return
        names = list(self.task.trainable)
        self._put([found.tensors["weights"][name] for name in names])
        for key, value in found.tensors["optimizer"].items():
            kind, name = key.split(":", 1)
            self.optimizer.state[self.task.trainable[name]][kind] = value.to(self.device)
        if self.ema is not None:
            self.ema = [found.tensors["ema"][name].to(self.device) for name in names]
        state = found.state
        state["losses"] = [(step, loss) for step, loss in state["losses"]]
        state["held_out"] = [(step, bands) for step, bands in state["held_out"]]
        self.progress = Progress(**state)
        log.info("%s goes on from step %d of %d.", self.task.title, self.progress.step, self.config.steps)

    def _result(self, samples: int, seconds: float) -> TrainResult:
        weights = self.ema if self.ema is not None else [parameter.detach() for parameter in self.parameters]
        tail = [loss for _, loss in self.progress.losses[-10:]]
        metrics: dict[str, Any] = {"loss": sum(tail) / len(tail) if tail else None}
        if samples:
            metrics["samples_per_second"] = round(samples / seconds, 3)
        if self.progress.held_out:
            metrics["held_out_loss_before"] = self.progress.held_out[0][1]
            metrics["held_out_loss"] = self.progress.held_out[-1][1]
        counts = {
            "steps": self.progress.step,
            "skipped_steps": self.progress.skipped,
            "trainable_parameters": sum(parameter.numel() for parameter in self.parameters),
        }
        plain = [weight.detach().to("cpu", copy=True).contiguous() for weight in weights]
        return TrainResult(dict(zip(self.task.trainable, plain, strict=True)), counts, metrics)
