"""What a step shows in Prefect, without a server."""

import time
from pathlib import Path
from uuid import uuid4

import httpx
from prefect.states import Failed

from components.train.report.log import StepReport
from flows.chain.parameters import with_parameter_docs
from flows.serving import reporting
from flows.train_motion_module import train_motion_module
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact, Input
from infra.config import Config
from infra.errors import UserError, WorkError


class Settings(Config):
    steps: int = 2


def an_artifact(folder: Path) -> Artifact:
    with artifacts.draft(folder, "motion-module", Settings(), {"cache": Input("latent-cache", "c", "f" * 64)}) as draft:
        (draft.folder / "loss.png").write_bytes(b"\x89PNG")
        draft.counts["steps"] = 2
        draft.metrics["loss"] = 0.25
    return artifacts.load(folder)


def test_a_user_s_mistake_is_not_tried_again():
    mistake, bad_luck = UserError("No such file.", "", ""), WorkError("The disk was full.", "", "")
    assert not reporting.is_worth_retrying(None, None, Failed(data=mistake))  # type: ignore[arg-type]
    assert reporting.is_worth_retrying(None, None, Failed(data=bad_luck))  # type: ignore[arg-type]
    assert reporting.is_worth_retrying(None, None, Failed(data=OSError("reset")))  # type: ignore[arg-type]


def test_the_record_in_a_few_lines(tmp_path: Path):
    record_rows = reporting.record_rows(an_artifact(tmp_path / "m"))
    assert record_rows["input cache"] == f"c ({'f' * 12})"
    assert (record_rows["steps"], record_rows["loss"]) == (2, 0.25)


def test_a_small_picture_travels_inside_and_a_big_one_does_not(tmp_path: Path, monkeypatch):
    artifact = an_artifact(tmp_path / "m")
    assert "![loss.png](data:image/png;base64,iVBORw==)" in reporting.markdown(artifact, "loss.png")
    assert "![" not in reporting.markdown(artifact, "absent.png")
    monkeypatch.setattr(reporting, "PICTURE_BYTES_MAX", 3)
    text = reporting.markdown(artifact, "loss.png")
    assert "![" not in text
    assert str(tmp_path / "m") in text


def test_prefect_s_form_explains_every_parameter():
    properties = train_motion_module.parameters.properties
    assert list(properties) == ["recipe", "overrides", "root", "cache", "domain_adapter", "workers"]
    assert all(field.get("description") for field in properties.values()), properties
    assert properties["recipe"]["enum"] == ["pocket", "pocket-full", "sd15"]
    assert "Args:" in str(with_parameter_docs(lambda: None).__doc__)


def test_a_training_goes_on_without_its_server(tmp_path: Path, monkeypatch, caplog):
    """Every call fails, then every call works again."""
    told: list[str] = []
    gone = True

    def server(what: str):
        def call(*given: object, **named: object):
            if gone:
                raise httpx.ConnectError("All connection attempts failed")
            told.append(what)
            return uuid4()

        return call

    for name in ("create_progress_artifact", "update_progress_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(reporting, name, server(name.split("_")[0] + " " + name.split("_")[1]))
    monkeypatch.setattr(reporting, "PROGRESS_EVERY_SECONDS", 0.0)
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"\x89PNG")
    progress = reporting.TrainingProgress("motion-module")
    for step in range(1, 5):
        progress(StepReport(step, 6, 0.5, None, 1.0, 0.0, pictures=(str(picture),)))
    assert [record.message for record in caplog.records] == [
        "Prefect's server does not answer (ConnectError); the training goes on."
    ]
    gone = False
    progress.silent_until = time.monotonic() - 1
    progress(StepReport(5, 6, 0.5, None, 1.0, 0.0, pictures=(str(picture),)))
    progress.done()
    assert told == ["create markdown", "create progress", "update progress", "update progress"]
