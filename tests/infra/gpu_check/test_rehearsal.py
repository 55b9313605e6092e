"""The check of a GPU, rehearsed on the CPU: every part runs, fails in a row of its own, or is listed as not reached."""

import json
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from infra.gpu_check import rows
from infra.gpu_check.checks import Check, checks
from infra.gpu_check.needs import lines, pins
from infra.gpu_check.rows import Row
from infra.gpu_check.run import run
from infra.gpu_check.sizes import REHEARSAL

ROOT = Path(__file__).resolve().parents[3]


def test_every_check_runs_on_the_cpu(tmp_path: Path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "infra.gpu_check", "--rehearse", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    bad = [row for row in found["rows"] if row["status"] in ("failed", "not reached")]
    assert bad == []
    assert {row["part"] for row in found["rows"]} == {check.part for check in checks(REHEARSAL)}
    named = " ".join(row["what"] for row in found["rows"])
    for what in ("against the CPU", "resumed", "compiled", "VAE", "animation", "official", "memory", "pocket"):
        assert what in named or what == "against the CPU", what
    assert found["machine"]["packages"]["torch"]
    assert found["rehearsal"] is True


def test_a_check_that_fails_is_a_row_and_not_the_end():
    told: list[Row] = []
    wrong = Check("correct", "no such stage", "correct.stage", 60, 0, {"name": "no-such-stage"})
    right = Check("fast", "matmul rate", "basics.rates", 60, 0)
    run([wrong, right], time.monotonic() + 600, True, told.append)
    assert (told[0].status, told[0].what) == ("failed", "no such stage")
    assert "There is no stage 'no-such-stage'" in told[0].note
    assert "Traceback" in told[0].details["traceback"]
    assert {row.status for row in told[1:]} == {"ok"}


def test_what_the_time_does_not_allow_is_listed():
    told: list[Row] = []
    run([Check("fast", "matmul rate", "basics.rates", 60, 30)], time.monotonic() + 5, True, told.append)
    assert [(row.what, row.status) for row in told] == [("matmul rate", "not reached")]


def test_targets_and_the_table():
    found = [
        rows.at_least(30, "ours", 31.4, "samples/s"),
        rows.at_most(0.02, "bf16 against fp32", 0.03),
        rows.at_most(0.02, "losses", float("nan")),
        Row("VAE encoding", status="not reached"),
    ]
    assert [row.status for row in found] == ["ok", "short", "short", "not reached"]
    assert rows.counts(found) == "1 ok, 2 short, 0 failed, 1 not reached"
    table = rows.table(found).splitlines()
    assert "31.4 samples/s" in table[1]
    assert "≥ 30" in table[1]
    assert len({line.index("ok") if "ok" in line else 0 for line in table[1:2]}) == 1


def test_the_needs_are_pinned_and_leave_the_heavy_packages_out():
    names = {line.split("==")[0] for line in lines()}
    assert {"diffusers", "peft", "open-clip-torch", "pydantic"} <= names
    assert not names & {"ray", "prefect", "decord", "great-expectations", "pyarrow", "torch", "typer"}
    lock = (ROOT / "requirements.lock").read_text()
    assert all(f"\n{line} " in lock for line in lines())
    assert pins()["contourpy"] == metadata.version("contourpy"), "the lock has two, for older and newer Pythons"


@pytest.mark.slow
def test_it_runs_with_nothing_but_its_needs(tmp_path: Path):
    """In an environment with torch, transformers, safetensors, numpy and what `--needs` names."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    bare = ["torch", "transformers", "safetensors", "numpy", "torchvision"]
    lock = pins()
    wanted = [f"{name}=={lock[name]}" for name in bare] + lines()
    uv = ROOT / ".tools" / "bin" / "uv"
    python = environment / "bin" / "python"
    subprocess.run([str(uv), "pip", "install", "--quiet", "--python", str(python), *wanted], check=True)
    listed = subprocess.run(
        [str(uv), "pip", "list", "--python", str(python)], capture_output=True, text=True, check=True
    )
    assert not {"ray", "prefect", "decord", "pyarrow", "great-expectations"} & {
        line.split()[0] for line in listed.stdout.splitlines() if line
    }
    out = tmp_path / "gpu.json"
    command = [str(python), "-m", "infra.gpu_check", "--rehearse", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
