"""What a training run tells: TensorBoard scalars, a step's report, the loss curve as a picture."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from infra.logs import get_logger

log = get_logger("components")


@dataclass(frozen=True)
class StepReport:
    """One finished step. `step` counts from 1; `held_out_loss` is None on steps that did not measure it."""

    step: int
    steps: int
    loss: float
    held_out_loss: float | None
    samples_per_second: float
    data_wait_share: float
    """Share of the time, 0..1, that the step waited for its batch."""


class Scalars:
    """TensorBoard's event file; a resumed run continues it from its step."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()


@dataclass
class StopRequest:
    """Whether a signal asked the run to stop, and its name."""

    name: str | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM inside the block into a request; a second one acts as usual.

    Outside the main thread signals cannot be caught, and the block changes nothing.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        log.warning("%s: finishing this step and saving.", request.name)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def plot_loss(
    path: Path,
    title: str,
    training: Sequence[tuple[int, float]],
    held_out: Sequence[tuple[int, Mapping[str, float]]],
) -> None:
    """loss.png: training loss, and held-out loss by timestep band with the bands' names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot([step for step, _ in training], [loss for _, loss in training], linewidth=1)
    left.set(title=title, xlabel="step", ylabel="training loss")
    for band in held_out[0][1] if held_out else ():
        right.plot([step for step, _ in held_out], [bands[band] for _, bands in held_out], label=band, linewidth=1)
    right.set(title="held-out clips, by timestep", xlabel="step", ylabel="loss", yscale="log")
    if held_out:
        right.legend()
    figure.savefig(path, dpi=110)
