"""A real Prefect server, a real process worker, and the deployments of prefect.yaml, on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.serving.up import Running, free_port, prefect_on_this_machine, running_server
from infra.artifacts import artifacts

pytestmark = pytest.mark.timeout(900)

SHORT = [
    "footage.count=8",
    "shot_footage.count=6",
    "domain_adapter.init_from=null",
    "motion_module.init_from=null",
    "motion_lora.init_from=null",
    "domain_adapter.train.steps=2",
    "motion_module.train.steps=3",
    "motion_lora.train.steps=2",
    "domain_adapter.train.held_out_clips=2",
    "motion_module.train.held_out_clips=2",
    "motion_lora.train.held_out_clips=2",
    "domain_adapter.train.batch_size=2",
    "motion_module.train.batch_size=2",
    "motion_lora.train.batch_size=2",
    "domain_adapter.train.sample_every_steps=0",
    "motion_lora.train.sample_every_steps=0",
    "animation.steps=2",
    "benchmark.animation.steps=2",
    "benchmark.prompts=[a red square moving left on grass]",
    "benchmark.references=2",
    "benchmark.methods=[{name: image-model, title: Image model}]",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def prefect(place: Path) -> Iterator[Running]:
    with prefect_on_this_machine(free_port(0), place / "state") as running:
        yield running
        family = [psutil.Process(p.pid) for p in (running.server, running.worker)]
        family += [child for process in family for child in process.children(recursive=True)]
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert running_server(place / "state") is None


def ask(prefect: Running, what: str, **query: Any) -> list[dict[str, Any]]:
    answer = httpx.post(f"{prefect.api}/{what}/filter", json=query, timeout=60)
    answer.raise_for_status()
    return answer.json()


def flow_run(prefect: Running, flow: str) -> dict[str, Any]:
    """The last one that was started; the nightly ones that the scheduler has planned are later."""
    runs = ask(prefect, "flow_runs", flows={"name": {"any_": [flow]}}, sort="START_TIME_DESC")
    return next(run for run in runs if run["start_time"] is not None)


def shown(prefect: Running, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = ask(prefect, "artifacts", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    return {artifact["key"]: artifact for artifact in found if artifact["key"]}


def test_every_flow_is_deployed_under_its_recipe_s_name(prefect: Running):
    flows = {flow["id"]: flow["name"] for flow in ask(prefect, "flows")}
    deployments = {f"{flows[d['flow_id']]}/{d['name']}": d for d in ask(prefect, "deployments")}
    trainings = ["train-domain-adapter", "train-motion-module", "train-motion-lora"]
    names = ["build-latent-cache", *trainings, "animate", "benchmark", "pipeline"]
    assert {f"{name}/pocket" for name in names} <= set(deployments)
    assert {f"{name}/sd15" for name in trainings} <= set(deployments)
    schedules = {name: d["schedules"] for name, d in deployments.items() if d["schedules"]}
    assert list(schedules) == ["benchmark/pocket"]
    assert schedules["benchmark/pocket"][0]["schedule"]["cron"] == "0 3 * * *"
    assert all(d["work_pool_name"] == "animateflow" for d in deployments.values())
    assert all(d["parameters"] == {"recipe": name.split("/")[1]} for name, d in deployments.items())


def test_the_scheduler_plans_the_nightly_benchmark(prefect: Running):
    """Under SQLAlchemy 2.1 Prefect's scheduler fails in its loop, and no schedule ever fires."""
    until = time.monotonic() + 120
    while not (runs := ask(prefect, "flow_runs", flows={"name": {"any_": ["benchmark"]}})):
        assert time.monotonic() < until, "no run is planned"
        time.sleep(1)
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}


def test_a_training_started_by_prefect_s_own_command_completes(prefect: Running, place: Path):
    parameters = {"overrides": SHORT, "root": str(place / "runs")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "prefect", "deployment", "run", "train-motion-module/pocket"),
            *("--watch", "--watch-interval", "1"),
            *("--params", json.dumps(parameters)),
        ],
        env={**prefect.environment, "PREFECT_API_URL": prefect.api},
        capture_output=True,
        text=True,
        check=False,
    )
    worker_log = (place / "state/logs/worker.log").read_text(errors="replace")[-6000:]
    assert done.returncode == 0, done.stdout + done.stderr + worker_log

    run = flow_run(prefect, "train-motion-module")
    assert run["state_type"] == "COMPLETED"

    found = shown(prefect, run)
    assert set(found) == {
        "motion-module-progress",
        "motion-module-loss",
        "motion-module-samples",
        "motion-module-record",
        "motion-module-folder",
        "motion-module-result",
    }
    assert "data:image/gif;base64," in found["motion-module-samples"]["data"]
    assert "held-out loss" in found["motion-module-progress"]["description"]
    assert found["motion-module-progress"]["data"] == 100.0
    assert "data:image/png;base64," in found["motion-module-result"]["data"]

    folder = place / "runs/motion-module/motion"
    artifact = artifacts.load(folder, "motion-module")
    assert {"what": "fingerprint", "value": artifact.fingerprint} in json.loads(found["motion-module-record"]["data"])

    logs = ask(prefect, "logs", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
    ours = [log["message"] for log in logs if log["name"].startswith("animateflow.")]
    assert ours, sorted({log["name"] for log in logs})

    from diffusers import MotionAdapter

    adapter = MotionAdapter.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in adapter.parameters()) > 100_000


def test_a_training_whose_process_is_killed_goes_on_when_it_is_run_again(prefect: Running, place: Path):
    """Killed by SIGKILL once a checkpoint is whole; the same deployment run again ends the training."""
    runs, out = place / "runs", place / "killed/motion-lora/zoom-in"
    overrides = [
        *SHORT,
        "motion_lora.train.steps=24",
        "motion_lora.train.checkpoint_every_steps=2",
        "motion_lora.train.sample_every_steps=24",
    ]
    parameters = {
        "overrides": overrides,
        "root": str(place / "killed"),
        "cache": str(runs / "latent-cache/footage"),
        "motion_module": str(runs / "motion-module/motion"),
        "domain_adapter": str(runs / "domain-adapter/adapter"),
    }
    command = [*(sys.executable, "-m", "prefect", "deployment", "run", "train-motion-lora/pocket"), "--params"]
    command.append(json.dumps(parameters))
    environment = {**prefect.environment, "PREFECT_API_URL": prefect.api}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    saved = out.with_name(f".{out.name}.partial") / "checkpoints"
    until = time.monotonic() + 300
    while not list(saved.glob("step-*/manifest.json")):
        assert time.monotonic() < until, (place / "state/logs/worker.log").read_text()[-3000:]
        time.sleep(0.05)
    engines = [
        child
        for child in psutil.Process(prefect.worker.pid).children(recursive=True)
        if any("train_motion_lora" in part or "prefect" in part for part in child.cmdline())
    ]
    assert engines
    for engine in engines:
        engine.kill()
    killed = flow_run(prefect, "train-motion-lora")
    step = max(int(path.parent.name.split("-")[1]) for path in saved.glob("step-*/manifest.json"))
    assert 0 < step < 24
    assert not out.exists()

    again = subprocess.run(
        [*command, "--watch", "--watch-interval", "1"], env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    run = flow_run(prefect, "train-motion-lora")
    assert run["id"] != killed["id"]
    assert run["state_type"] == "COMPLETED"
    logs = ask(prefect, "logs", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
    assert any(f"resumes from step {step} of 24" in log["message"] for log in logs)
    assert artifacts.load(out, "motion-lora").counts["steps"] == 24
    found = shown(prefect, run)
    assert found["motion-lora-progress"]["data"] == 100.0
    assert {"motion-lora-loss", "motion-lora-samples", "motion-lora-result"} <= set(found)
    state = ask(prefect, "flow_runs", flow_runs={"id": {"any_": [killed["id"]]}})[0]["state_type"]
    assert state in ("CRASHED", "FAILED"), state


def test_the_pipeline_runs_every_flow_and_redoes_nothing(prefect: Running, place: Path):
    trained = (place / "runs/motion-module/motion/record.json").stat().st_mtime_ns
    overrides = [argument for override in SHORT for argument in ("--set", override)]
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("animateflow"), "run", "pipeline", "--watch"),
            *("--param", f"root={place / 'runs'}", *overrides),
        ],
        env={**os.environ, "PREFECT_API_URL": prefect.api},
        capture_output=True,
        text=True,
        check=False,
    )
    worker_log = (place / "state/logs/worker.log").read_text(errors="replace")[-6000:]
    assert done.returncode == 0, done.stdout + done.stderr + worker_log
    assert (place / "runs/motion-module/motion/record.json").stat().st_mtime_ns == trained
    for flow, key in {
        "build-latent-cache": "latent-cache-record",
        "train-motion-lora": "motion-lora-result",
        "animate": "animation-result",
        "benchmark": "benchmark-record",
    }.items():
        run = flow_run(prefect, flow)
        assert run["state_type"] == "COMPLETED", flow
        assert key in shown(prefect, run)
    assert (place / "runs/benchmark/scores/report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train-motion-module/sd20"], ["no deployment 'sd20'", "pocket, sd15"]),
        (["train-motion-module", "--param", "stepz=3"], ["refused"]),
    ],
)
def test_a_wrong_start_is_exit_code_2(
    animateflow, prefect: Running, monkeypatch, arguments: list[str], words: list[str]
):
    monkeypatch.setenv("PREFECT_API_URL", prefect.api)
    outcome = animateflow("run", *arguments)
    assert outcome.code == 2
    assert all(word in outcome.err for word in words)


def test_up_stops_everything_on_sigterm(tmp_path: Path):
    """The command itself, on a state folder of its own, told to end while it starts its server."""
    command = Path(sys.executable).with_name("animateflow")
    process = subprocess.Popen(
        [command, "up", "--state", str(tmp_path), "--port", str(free_port(0))],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    family: list[psutil.Process] = []
    end = time.monotonic() + 120
    while not family and time.monotonic() < end:
        time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert family
    assert process.returncode == 0, out.decode()
    assert b"Stopped." in out
    assert not [child for child in family if child.is_running()]
