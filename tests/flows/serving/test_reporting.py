"""What a step shows in Prefect, without a server."""

from pathlib import Path

from prefect.states import Failed

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
