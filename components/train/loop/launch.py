"""Where a training runs: in this process, or on several workers, each with an equal part of every batch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from components.train.loop.stop_signals import stop_signals
from components.train.report.log import StepReport
from infra import logs
from infra.errors import UserError
from infra.workers import messages, workers

OnStep = Callable[[StepReport], None] | None


@dataclass(frozen=True)
class Job:
    """A training to be run: `work` trains into `folder`, from the newest checkpoint there, and leaves its result."""

    title: str
    folder: Path
    device: str
    """`auto`, `cpu` or `cuda`, as in the config."""
    work: Callable[[OnStep], None]


class Launch(Protocol):
    """Runs a job to its end; `on_step` is called in this process."""

    @property
    def workers(self) -> int: ...

    def __call__(self, job: Job, on_step: OnStep) -> None: ...


@dataclass(frozen=True)
class InThisProcess:
    """Runs in this process."""

    workers: int = 1

    def __call__(self, job: Job, on_step: OnStep) -> None:
        messages.remove_mailbox(job.folder)  # of a run on workers that was killed
        with ProgressBar(job.title, on_step) as bar:
            job.work(bar)


@dataclass(frozen=True)
class OnWorkers:
    """Ray Train on `workers` processes of this machine or of the cluster at `address`: a GPU each where there are any,
    else CPUs. They start again from the newest checkpoint when one of them dies."""

    workers: int
    address: str | None = None

    def __call__(self, job: Job, on_step: OnStep) -> None:
        gpus = None if job.device == "auto" else job.device.startswith("cuda")
        checkpoints = job.folder / "checkpoints"
        # Ray takes SIGTERM over when it starts, so it starts first.
        with (
            workers.session(self.workers, self.address),
            stop_signals() as stop,
            ProgressBar(job.title, on_step) as bar,
        ):
            listener = workers.Listener(
                on_message=lambda line: bar(StepReport(**json.loads(line))),
                stop_reason=lambda: stop.name,
                progress=lambda: sorted(path.parent.name for path in checkpoints.glob("step-*/manifest.json")),
            )
            work = partial(_work, job.work, job.folder)
            workers.run_on_workers(work, job.folder, self.workers, gpus, listener)


def launch_on(count: int = 1, address: str | None = None) -> Launch:
    """Several workers, or workers of the cluster at `address`; else this process."""
    return InThisProcess() if count == 1 and address is None else OnWorkers(count, address)


def _work(work: Callable[[OnStep], None], folder: Path) -> None:
    work(lambda report: messages.send(folder, json.dumps(asdict(report))))


def check_batch_size(batch_size: int, launch: Launch) -> None:
    """
    Raises:
        UserError: the workers cannot share a batch evenly.
    """
    if launch.workers < 1 or batch_size % launch.workers:
        fitting = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
        raise UserError(
            f"{launch.workers} workers cannot share batches of {batch_size} clips.",
            "train.batch_size counts the clips of all workers together, and each worker takes an equal part.",
            f"Set --workers to one of {', '.join(map(str, fitting))}, or train.batch_size to another multiple.",
        )


class ProgressBar:
    """A progress bar over the steps; passes each report on."""

    def __init__(self, title: str, on_step: OnStep) -> None:
        self._title, self._on_step = title, on_step
        self._losses: deque[float] = deque(maxlen=10)
        self._figures: dict[str, str] = {}
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, report: StepReport) -> None:
        if self._bar is None:
            self._bar = logs.progress(report.steps, self._title, "step", report.step - 1)
        if report.loss == report.loss:  # NaN between two reads from the device
            self._losses.append(report.loss)
        if report.peak_gib is not None:
            self._figures = {"memory": f"{report.peak_gib:.1f} of {report.predicted_gib:.1f} GiB"}
            if report.mfu is not None:
                self._figures = {"MFU": f"{report.mfu:.0%}", **self._figures}
        figures = {
            "samples/s": f"{report.samples_per_second:.1f}",
            "data wait": f"{report.data_wait_share:.0%}",
            **self._figures,
        }
        if self._losses:
            figures = {"loss": f"{sum(self._losses) / len(self._losses):.4f}", **figures}
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update(report.step - self._bar.n)  # negative after workers were restarted
        if self._on_step is not None:
            self._on_step(report)
