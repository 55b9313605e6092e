"""Steps in Prefect: tasks with retries and logs, training progress, and artifacts with a picture."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import httpx
from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.tasks import Task

from infra.artifacts.artifacts import Artifact
from infra.errors import UserError
from infra.logs import get_logger, setup_logging

if TYPE_CHECKING:
    from components.train.report.log import StepReport

log = get_logger("flows")

PICTURE_BYTES_MAX = 1_000_000  # a picture travels inside the markdown, through the server's database
PROGRESS_EVERY_SECONDS = 2.0
SILENT_SECONDS = 60.0  # before a server that did not answer is told anything again
RETRY_DELAYS_SECONDS: list[float] = [10.0, 60.0]


def run_task(title: str, make: Callable[[], Artifact], retries: int = 0) -> Artifact:
    """Runs `make` as one Prefect task. A failure is retried, except for a user's mistake.

    What it logs under `animateflow.*` arrives in the run's log (PREFECT_LOGGING_EXTRA_LOGGERS names the loggers; their
    level is set here).
    """
    setup_logging()
    step = task(
        name=title,
        retries=retries,
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_condition_fn=is_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return step(make)()


def run_training(kind: str, title: str, make: Callable[[TrainingProgress], Artifact]) -> Artifact:
    """Runs a training stage as one Prefect task, with its progress while it runs and its loss curves at the end."""
    progress = TrainingProgress(kind)
    artifact = run_task(title, lambda: make(progress))
    progress.done()
    return publish(artifact, picture="loss.png")


def is_worth_retrying(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """False for a `UserError`: the same input fails the same way."""
    return not isinstance(state.result(raise_on_failure=False), UserError)


def publish(artifact: Artifact, picture: str | None = None, links: Mapping[str, str] | None = None) -> Artifact:
    """Creates Prefect artifacts: our artifact's record, links to its folder and pages, a picture. Returns it."""
    folder = artifact.folder.resolve()
    create_table_artifact(
        key=f"{artifact.kind}-record",
        table=[{"what": name, "value": str(value)} for name, value in record_rows(artifact).items()],
        description=f"The record of `{folder}`",
    )
    create_link_artifact(key=f"{artifact.kind}-folder", link=folder.as_uri(), link_text=str(folder))
    for name, page in (links or {}).items():
        create_link_artifact(key=f"{artifact.kind}-{name}", link=(folder / page).as_uri(), link_text=page)
    create_markdown_artifact(key=f"{artifact.kind}-result", markdown=markdown(artifact, picture))
    return artifact


def record_rows(artifact: Artifact) -> dict[str, Any]:
    """The artifact's record as one flat table."""
    record = artifact.record
    return {
        "kind": artifact.kind,
        "name": artifact.name,
        "fingerprint": artifact.fingerprint,
        **{
            f"input {name}": f"{given['name']} ({given['fingerprint'][:12]})"
            for name, given in record["inputs"].items()
        },
        **artifact.counts,
        **artifact.metrics,
        "seconds": record["seconds"],
        "created": record["created"],
    }


def markdown(artifact: Artifact, picture: str | None) -> str:
    """Heading, path, counts and metrics of an artifact and, if small enough, the picture itself."""
    lines = [f"# {artifact.kind} `{artifact.name}`", "", f"`{artifact.folder.resolve()}`", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in {**artifact.counts, **artifact.metrics}.items()]
    if picture and (artifact.folder / picture).is_file():
        lines += ["", picture_markdown(artifact.folder / picture)]
    return "\n".join(lines)


def picture_markdown(picture: Path) -> str:
    """The picture inside markdown, or only its path if the file is large."""
    if picture.stat().st_size > PICTURE_BYTES_MAX:
        return f"`{picture.resolve()}`"
    kind = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}[picture.suffix]
    return f"![{picture.name}](data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()})"


class TrainingProgress:
    """An `on_step` for the trainer that updates a Prefect progress artifact and shows loss curves and samples.

    A training outlives its server: what cannot be told is left out, with one warning, and the next is told again once
    the server answers.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.artifact_id: UUID | None = None
        self.updated = 0.0
        self.held_out: float | None = None
        self.silent_until = 0.0
        with self._server():
            self._start()

    def __call__(self, report: StepReport) -> None:
        self.held_out = self.held_out if report.held_out_loss is None else report.held_out_loss
        if time.monotonic() < self.silent_until and report.step < report.steps:
            return
        with self._server():
            self._show(report)

    def done(self) -> None:
        """Sets the progress to 100 %, also if the artifact existed before."""
        with self._server():
            update_progress_artifact(self._start(), progress=100.0)

    def _show(self, report: StepReport) -> None:
        for picture in map(Path, report.pictures):
            what = "samples" if picture.parent.name == "samples" else picture.stem
            create_markdown_artifact(
                key=f"{self.stage}-{what}",
                markdown=f"# {self.stage}, step {report.step:,}: {what}\n\n{picture_markdown(picture)}",
                description=f"{what} at step {report.step:,} of {report.steps:,}",
            )
        if time.monotonic() - self.updated < PROGRESS_EVERY_SECONDS and report.step < report.steps:
            return
        self.updated = time.monotonic()
        update_progress_artifact(
            self._start(),
            progress=100.0 * report.step / report.steps,
            description=f"{self.stage}: step {report.step} of {report.steps}, loss {report.loss:.4f}, "
            + ("" if self.held_out is None else f"held-out loss {self.held_out:.4f}, ")
            + f"{report.samples_per_second:.1f} samples/s",
        )

    def _start(self) -> UUID:
        if self.artifact_id is None:
            made = create_progress_artifact(0.0, key=f"{self.stage}-progress", description=f"Training: {self.stage}")
            self.artifact_id = cast(UUID, made)
        return self.artifact_id

    @contextmanager
    def _server(self) -> Iterator[None]:
        try:
            yield
            self.silent_until = 0.0
        except (httpx.HTTPError, PrefectHTTPStatusError, OSError, RuntimeError) as error:
            if not self.silent_until:
                log.warning("Prefect's server does not answer (%s); the training goes on.", type(error).__name__)
            self.silent_until = time.monotonic() + SILENT_SECONDS


def find_picture(folder: Path, pattern: str) -> str | None:
    """The path of the first file that matches, relative to the folder, for `publish`."""
    return next((path.relative_to(folder).as_posix() for path in sorted(folder.glob(pattern))), None)
