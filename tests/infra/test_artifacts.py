"""Artifacts: the record is last, drift is named, a dead run is resumed or redone, two writers do not meet."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra import artifacts
from infra.artifacts import Input
from infra.config import Config, execution
from infra.errors import UserError

KIND = "numbers"


class Numbers(Config):
    count: int = 3
    """Numbers to write."""
    workers: int = execution(1)
    """Processes."""


def make(
    out: Path, config: Numbers, inputs: dict[str, Input] | None = None, resumable: bool = False
) -> artifacts.Artifact:
    inputs = inputs or {}
    if done := artifacts.find(out, KIND, config, inputs):
        return done
    with artifacts.draft(out, KIND, config, inputs, resumable) as draft:
        (draft.folder / "data.txt").write_text("\n".join(map(str, range(config.count))))
        draft.counts["numbers"] = config.count
        draft.metrics["mean"] = (config.count - 1) / 2
    return artifacts.load(out, KIND)


def test_a_finished_artifact_tells_all_about_itself(tmp_path: Path):
    cache = Input("latent-cache", "clips", "f" * 64)
    artifact = make(tmp_path / "numbers" / "three", Numbers(workers=4), {"cache": cache})
    assert (artifact.kind, artifact.name, artifact.counts, artifact.metrics) == (
        KIND,
        "three",
        {"numbers": 3},
        {"mean": 1.0},
    )
    assert artifact.config == {"count": 3, "workers": 4}
    assert artifact.record["inputs"] == {"cache": {"kind": "latent-cache", "name": "clips", "fingerprint": "f" * 64}}
    assert artifact.record["versions"]["torch"]
    assert artifact.record["seconds"] >= 0
    assert artifact.as_input() == Input(KIND, "three", artifact.fingerprint)
    assert sorted(path.name for path in artifact.folder.parent.iterdir()) == ["three"]


def test_a_colleague_may_read_what_safetensors_wrote(tmp_path: Path):
    import torch
    from safetensors.torch import save_file

    with artifacts.draft(tmp_path / "a", KIND, Numbers(), {}) as draft:
        save_file({"x": torch.zeros(1)}, draft.folder / "weights.safetensors")
    umask = os.umask(0o022)
    os.umask(umask)
    assert (tmp_path / "a" / "weights.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_same_call_again_does_nothing(tmp_path: Path):
    first = make(tmp_path / "a", Numbers())
    before = (tmp_path / "a" / "data.txt").stat().st_mtime_ns
    again = make(tmp_path / "a", Numbers(workers=8))
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "a" / "data.txt").stat().st_mtime_ns == before


def test_drift_names_every_field_and_input_that_differs(tmp_path: Path):
    make(tmp_path / "a", Numbers(), {"cache": Input("latent-cache", "x", "1111")})
    with pytest.raises(UserError) as caught:
        make(tmp_path / "a", Numbers(count=5), {"cache": Input("latent-cache", "y", "2222")})
    assert "config.count was 3 and is now 5" in str(caught.value)
    assert 'inputs.cache was "1111" and is now "2222"' in str(caught.value)
    assert "workers" not in str(caught.value)
    assert (tmp_path / "a" / "data.txt").read_text() == "0\n1\n2"


def test_the_record_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    write = artifacts.write_json
    monkeypatch.setattr(
        artifacts,
        "write_json",
        lambda path, value: (seen.extend(p.name for p in path.parent.iterdir()), write(path, value)),
    )
    make(tmp_path / "a", Numbers())
    assert seen == ["data.txt"]


def test_a_failed_run_leaves_no_artifact_and_a_resumable_one_keeps_its_files(tmp_path: Path):
    out = tmp_path / "a"
    for resumable, kept in ((True, True), (False, False)):
        with (
            pytest.raises(RuntimeError),
            artifacts.draft(out, KIND, Numbers(), {}, resumable) as draft,
        ):
            (draft.folder / "half.txt").write_text("half")
            raise RuntimeError
        assert not out.exists()
        with artifacts.draft(out, KIND, Numbers(), {}, resumable) as draft:
            assert draft.resumed is kept
            assert (draft.folder / "half.txt").exists() is kept
        (out / artifacts.RECORD).unlink()
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


def test_a_draft_of_another_config_is_not_resumed(tmp_path: Path):
    with pytest.raises(RuntimeError), artifacts.draft(tmp_path / "a", KIND, Numbers(), {}, True) as draft:
        (draft.folder / "half.txt").write_text("half")
        raise RuntimeError
    with artifacts.draft(tmp_path / "a", KIND, Numbers(count=4), {}, True) as draft:
        assert not draft.resumed
        assert not (draft.folder / "half.txt").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.infra.test_artifacts import KIND, Numbers
from infra import artifacts
moment = sys.argv[3]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if moment == "before-record":
    artifacts.write_json = die
if moment == "before-rename":
    artifacts.os.replace = lambda a, b: die() if Path(b).name == "a" else os.rename(a, b)
with artifacts.draft(Path(sys.argv[1]), KIND, Numbers(), {}, True) as draft:
    (draft.folder / "data.txt").write_text("0")
    if moment == "at-work":
        die()
"""


@pytest.mark.parametrize("moment", ["at-work", "before-record", "before-rename"])
def test_killed_at_any_moment_it_is_made_again(tmp_path: Path, moment: str):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(root), moment], env=os.environ, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    assert make(tmp_path / "a", Numbers(), resumable=True).counts == {"numbers": 3}
    record = json.loads((tmp_path / "a" / artifacts.RECORD).read_text())
    assert record["kind"] == KIND
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["data.txt", "record.json"]


def test_two_writers_do_not_meet(tmp_path: Path):
    with (
        artifacts.draft(tmp_path / "a", KIND, Numbers(), {}),
        pytest.raises(UserError, match="Another run is writing"),
        artifacts.draft(tmp_path / "a", KIND, Numbers(), {}),
    ):
        pass


def test_places_that_cannot_be_written_say_so(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        artifacts.draft(tmp_path / "file" / "a", KIND, Numbers(), {}),
    ):
        pass


def test_loading_names_what_is_wrong(tmp_path: Path):
    make(tmp_path / "a", Numbers())
    (tmp_path / "empty").mkdir()
    for folder, kind, words in (
        (tmp_path / "absent", KIND, "does not exist"),
        (tmp_path / "empty", KIND, "unfinished or foreign"),
        (tmp_path / "a", "motion-module", "holds a numbers, not a motion-module"),
    ):
        with pytest.raises(UserError, match=words):
            artifacts.load(folder, kind)


def test_an_empty_folder_may_be_written_into_and_a_foreign_one_may_not(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty", Numbers()).folder.name == "empty"
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="foreign folder"):
        make(tmp_path / "foreign", Numbers())
    assert (tmp_path / "foreign" / "letter.txt").read_text() == "mine"
