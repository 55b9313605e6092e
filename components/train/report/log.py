"""What a training reports: curves, one report a step, loss.png."""

from __future__ import annotations

import importlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from components.train.config import TrainConfig
from infra.errors import UserError


@dataclass(frozen=True)
class StepReport:
    """One finished step. `step` counts from 1; `held_out_loss` is None on steps that did not measure it."""

    step: int
    steps: int
    loss: float
    held_out_loss: float | None
    samples_per_second: float
    data_wait_share: float
    """Share of the time, 0..1, that steps waited for their batches."""
    mfu: float | None = None
    """Model FLOPs utilisation, 0..1; None between points of the curve, and for several dtypes."""
    peak_gib: float | None = None
    predicted_gib: float | None = None
    pictures: Sequence[str] = ()
    """Files made in this step: the loss curve, samples."""


class Curves:
    """The curves of a run, in TensorBoard's event file and in the trackers of the config. A resumed run continues them
    from its step.

    Raises:
        UserError: the package of a tracker is not installed.
    """

    def __init__(self, folder: Path, step: int, config: TrainConfig, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._trackers = [_TRACKERS[name](folder, config, title) for name in config.trackers]
        self._tensorboard: Any = SummaryWriter(str(folder), purge_step=step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.add(step, values)

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensorboard.close()
        for tracker in self._trackers:
            tracker.close(kind is None)


class Tracker(Protocol):
    """A service that keeps curves."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, well: bool) -> None: ...


class _Wandb:
    def __init__(self, folder: Path, config: TrainConfig, title: str) -> None:
        wandb = _package("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "animateflow"), name=title, id=_id_of(folder), resume="allow",
            dir=str(folder), config=config.model_dump(mode="json"),
        )  # fmt: skip

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


class _Mlflow:
    def __init__(self, folder: Path, config: TrainConfig, title: str) -> None:
        self._mlflow = _package("mlflow")
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            self._mlflow.set_experiment("animateflow")
        kept = folder / "mlflow-run"
        known = kept.read_text(encoding="utf-8") if kept.is_file() else None
        run = self._mlflow.start_run(run_id=known, run_name=None if known else title)
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(run.info.run_id, encoding="utf-8")
            self._mlflow.log_params(config.model_dump(mode="json"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        plain = {re.sub(r"[^\w\-. /]", "", name): value for name, value in values.items()}
        self._mlflow.log_metrics(plain, step=step)

    def close(self, well: bool) -> None:
        self._mlflow.end_run("FINISHED" if well else "FAILED")


_TRACKERS: dict[str, Callable[[Path, TrainConfig, str], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"train.trackers names {name}, which is not installed.",
            "It is no part of this project's requirements.",
            f"Run `uv pip install {name}`, or leave it out; TensorBoard's curves are there in any case.",
        ) from None


def _id_of(folder: Path) -> str:
    """The run's id, the same after it is resumed."""
    kept = folder / "wandb-id"
    if not kept.is_file():
        kept.write_text(secrets.token_hex(8), encoding="utf-8")
    return kept.read_text(encoding="utf-8")


def plot_loss(
    path: Path,
    title: str,
    training: Sequence[tuple[int, float]],
    held_out: Sequence[tuple[int, Mapping[str, float]]],
    shuffle_gaps: Sequence[tuple[int, float]] = (),
) -> None:
    """loss.png: training loss, held-out loss by timestep band with the bands' names, and the frame-shuffle gap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 1 + bool(held_out) + bool(shuffle_gaps)
    width = 4.5 * panels
    figure = Figure(figsize=(width, 4))  # margins in inches: a layout engine draws everything once more
    figure.subplots_adjust(left=0.75 / width, right=1 - 0.15 / width, bottom=0.13, top=0.91, wspace=0.3)
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(1, panels, squeeze=False)[0])
    first = next(axes)
    first.plot([step for step, _ in training], [loss for _, loss in training], linewidth=1)
    first.set(title=title, xlabel="step", ylabel="training loss")
    if held_out:
        bands = next(axes)
        for band in held_out[0][1]:
            steps = [step for step, _ in held_out]
            bands.plot(steps, [losses[band] for _, losses in held_out], label=band, linewidth=1, marker=".")
        bands.set(title="held-out clips, by timestep", xlabel="step", ylabel="loss", yscale="log")
        bands.legend(fontsize="x-small", ncols=2, framealpha=0.6)
    if shuffle_gaps:
        gaps = next(axes)
        gaps.plot([step for step, _ in shuffle_gaps], [gap for _, gap in shuffle_gaps], linewidth=1, marker=".")
        gaps.axhline(0, color="0.7", linewidth=0.8)
        gaps.set(title="frame-shuffle gap (motion learnt: > 0)", xlabel="step", ylabel="loss shuffled - in order")
    figure.savefig(path, dpi=110)
