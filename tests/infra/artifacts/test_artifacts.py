"""Artifacts: the record is last, drift is named, a dead run is resumed or redone, two writers do not meet."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.artifacts import artifacts
from infra.artifacts.artifacts import Input
from infra.artifacts.sealing import write_json
from infra.config import Config, execution
from infra.errors import UserError

KIND = "numbers"


class Numbers(Config):
    count: int = 3
    """Numbers to write."""
    workers: int = execution(1)
    """Processes."""


def make(
    out: Path, config: Numbers, inputs: dict[str, Input] | None = None, scratch: str | None = None
) -> artifacts.Artifact:
    inputs = inputs or {}
    if done := artifacts.find(out, KIND, config, inputs):
        return done
    with artifacts.draft(out, KIND, config, inputs, scratch) as draft:
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
    write = write_json
    monkeypatch.setattr(
        artifacts,
        "write_json",
        lambda path, value: (seen.extend(p.name for p in path.parent.iterdir()), write(path, value)),
    )
    make(tmp_path / "a", Numbers())
    assert sorted(seen) == ["data.txt", "draft.json"]


def test_a_failed_run_leaves_no_artifact_and_keeps_what_it_can_go_on_from(tmp_path: Path):
    out = tmp_path / "a"
    for scratch, kept in (("saved", True), ("other", False), (None, False)):
        with pytest.raises(RuntimeError), artifacts.draft(out, KIND, Numbers(), {}, scratch) as draft:
            (draft.folder / "saved").mkdir()
            (draft.folder / "saved" / "half.txt").write_text("half")
            raise RuntimeError
        assert not out.exists()
        with artifacts.draft(out, KIND, Numbers(workers=2), {}, scratch) as draft:
            assert draft.resumed is kept
            assert (draft.folder / "saved").exists() is kept
            (draft.folder / "data.txt").write_text("whole")
        assert sorted(path.name for path in out.iterdir()) == ["data.txt", "record.json"]
        shutil.rmtree(out)


def test_what_a_stopped_run_has_saved_is_not_lost_to_another_config(tmp_path: Path):
    out = tmp_path / "a"
    with pytest.raises(RuntimeError), artifacts.draft(out, KIND, Numbers(), {}, "saved") as draft:
        (draft.folder / "saved").mkdir()
        (draft.folder / "saved" / "half.txt").write_text("half")
        raise RuntimeError
    other = {"cache": Input("latent-cache", "y", "2222")}
    with (
        pytest.raises(UserError, match=r"config.count was 3 and is now 4; inputs.cache was null.*Undo the change"),
        artifacts.draft(out, KIND, Numbers(count=4), other, "saved"),
    ):
        pass
    with artifacts.draft(out, KIND, Numbers(), {}, "saved") as draft:
        assert (draft.folder / "saved" / "half.txt").read_text() == "half"


def test_a_user_s_error_leaves_nothing_where_there_is_nothing_to_go_on_from(tmp_path: Path):
    def fail(saves: bool) -> None:
        with artifacts.draft(tmp_path / "a", KIND, Numbers(), {}, "saved") as draft:
            (draft.folder / "logs.txt").write_text("")
            if saves:
                (draft.folder / "saved").mkdir()
                (draft.folder / "saved" / "half.txt").write_text("half")
            raise UserError("The disk is full.", "", "")

    with pytest.raises(UserError):
        fail(saves=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError):
        fail(saves=True)
    assert (tmp_path / ".a.partial" / "saved" / "half.txt").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.infra.artifacts.test_artifacts import KIND, Numbers
from infra.artifacts import artifacts
from infra.artifacts.sealing import RECORD
moment = sys.argv[3]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if moment == "before-record":
    write = artifacts.write_json
    artifacts.write_json = lambda path, value: die() if path.name == RECORD else write(path, value)
if moment == "before-rename":
    os.replace = lambda a, b: die() if Path(b).name == "a" else os.rename(a, b)
with artifacts.draft(Path(sys.argv[1]), KIND, Numbers(), {}, "saved") as draft:
    (draft.folder / "data.txt").write_text("of the killed run")
    (draft.folder / "saved").mkdir()
    (draft.folder / "saved" / "half.txt").write_text("half")
    if moment == "at-work":
        die()
"""


@pytest.mark.parametrize("moment", ["at-work", "before-record", "before-rename"])
def test_killed_at_any_moment_it_is_made_again_or_found_whole(tmp_path: Path, moment: str):
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "a"), str(root), moment], env=os.environ, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    made = make(tmp_path / "a", Numbers(), scratch="saved")
    sealed = moment == "before-rename"
    assert made.counts == ({} if sealed else {"numbers": 3})
    assert (made.folder / "data.txt").read_text() == ("of the killed run" if sealed else "0\n1\n2")
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
        (tmp_path / "empty", KIND, "is unfinished, or not an artifact"),
        (tmp_path / "a", "motion-module", "holds a numbers, not a motion-module"),
    ):
        with pytest.raises(UserError, match=words):
            artifacts.load(folder, kind)


def test_an_empty_folder_may_be_written_into_and_a_foreign_one_may_not(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty", Numbers()).folder.name == "empty"
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is unfinished, or not an artifact"):
        make(tmp_path / "foreign", Numbers())
    assert (tmp_path / "foreign" / "letter.txt").read_text() == "mine"


def test_a_full_disk_is_told_and_what_a_version_goes_on_from_is_kept(tmp_path: Path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(UserError, match=r"no room left.*are kept.*Free some space"),
        artifacts.revision(tmp_path / "a", KIND, Numbers()) as work,
    ):
        (work.folder / "shard").write_text("whole")
        raise full
    assert (tmp_path / ".a.partial" / "shard").read_text() == "whole"
    with (
        pytest.raises(UserError, match=r"no room left.*Nothing of this run is left"),
        artifacts.draft(tmp_path / "b", KIND, Numbers(), {}),
    ):
        raise full
    assert not (tmp_path / ".b.partial").exists()
