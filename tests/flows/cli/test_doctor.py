"""The doctor: a finding for each thing, advice for each lack, and no check that can break it."""

from pathlib import Path

import pytest

from flows.cli import doctor
from flows.cli.doctor import Finding


def test_it_examines_everything_there_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "ray_start", lambda: Finding("ok", "ray", "not started in this test"))
    findings = {finding.what: finding for finding in doctor.examine()}
    assert list(findings) == [
        "python",
        "packages",
        "memory",
        "disk",
        "pocket weights",
        "prefect",
        "device",
        "video",
        "ray",
    ]
    assert findings["python"].state == "ok"
    assert findings["video"].state == "ok"
    assert all(finding.advice for finding in findings.values() if finding.state != "ok")


def test_a_check_that_breaks_is_a_finding():
    def broken_thing() -> Finding:
        raise OSError("no such device")

    finding = doctor.run_check(broken_thing)
    assert (finding.state, finding.what) == ("missing", "broken thing")
    assert "no such device" in finding.line()
    assert finding.advice in finding.line()


def test_another_version_than_the_locked_one_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "requirements.lock").write_text(
        "torch==0.0.1 \\\n    --hash=sha256:00\nnumpy==0.0.2 ; python_version < '3'\n"
    )
    monkeypatch.setattr(doctor, "PROJECT", tmp_path)
    finding = doctor.packages()
    assert finding.state == "note"
    assert "torch" in finding.found
    assert "make setup" in finding.advice


def test_something_missing_is_exit_code_1(animateflow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        doctor, "examine", lambda: iter([Finding("missing", "python", "3.9", "Python 3.11 is needed.")])
    )
    outcome = animateflow("doctor")
    assert outcome.code == 1
    assert "MISSING" in outcome.out
    assert "Python 3.11 is needed." in outcome.out
    monkeypatch.setattr(doctor, "examine", lambda: iter([Finding("note", "disk", "1 GiB", "Make room.")]))
    assert animateflow("doctor").code == 0
