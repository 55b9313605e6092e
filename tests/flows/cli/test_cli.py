"""The command line: all commands, quick help, and a newcomer's mistakes as one line with exit code 2."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.artifacts import artifacts
from infra.config import Config

COMMANDS = [
    "demo", "doctor", "cache build", "cache plan", "cache verify", "cache inspect", "train domain-adapter",
    "train motion-module", "train motion-lora", "animate", "weights export", "weights import", "weights info",
    "benchmark", "up", "run", "pocket build", "pocket clips",
]  # fmt: skip
POCKET = Path(__file__).parents[3] / "infra" / "pocket" / "weights"
HEAVY = ("torch", "diffusers", "transformers", "prefect", "ray", "numpy", "pandas", "pyarrow", "great_expectations")


class Nothing(Config):
    pass


def mistake(outcome, *words: str) -> None:
    """One line on stderr, with these words, no traceback, exit code 2."""
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, outcome.err
    assert outcome.err.rstrip().endswith(lines[0]), "nothing follows the message"
    for word in words:
        assert word in lines[0]


@pytest.fixture
def a_record(tmp_path: Path) -> Path:
    """A finished artifact of a kind that no command wants."""
    with artifacts.draft(tmp_path / "other", "letters", Nothing(), {}):
        pass
    return tmp_path / "other"


def test_help_answers_in_under_a_second():
    """In CPU seconds, which are the wall clock's on an idle machine."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    command = [Path(sys.executable).with_name("animateflow"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert spent() - before < 1.0
    for name in COMMANDS:
        assert name.split()[0] in done.stdout


def test_help_imports_nothing_heavy():
    code = f"import sys, flows.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(animateflow, command: str):
    outcome = animateflow(*command.split(), "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out
    assert len(outcome.out.splitlines()) > 6


def test_an_unknown_command_or_option_is_a_usage_error(animateflow):
    assert animateflow("trian").code == 2
    assert animateflow("demo", "--fast").code == 2
    assert animateflow("animate").code == 2


def test_unknown_recipe(animateflow, tmp_path: Path):
    outcome = animateflow("train", "domain-adapter", "--recipe", "sd20", "--cache", tmp_path, "--out", tmp_path / "o")
    mistake(outcome, "no recipe 'sd20'", "pocket, pocket-full, sd15", "--recipe")


def test_unknown_field_of_a_recipe(animateflow, tmp_path: Path):
    outcome = animateflow("demo", "--out", tmp_path / "o", "--set", "motion_module.train.stepz=5")
    mistake(outcome, "'stepz' is not known", "steps", "--set")


def test_a_value_that_does_not_fit(animateflow, tmp_path: Path):
    outcome = animateflow("demo", "--out", tmp_path / "o", "--set", "motion_module.train.steps=soon")
    mistake(outcome, "motion_module.train.steps", "'soon'")


def test_wrong_path_of_videos(animateflow, tmp_path: Path):
    outcome = animateflow(
        "cache", "build", "--source", tmp_path / "no.csv", "--videos", tmp_path, "--out", tmp_path / "o"
    )
    mistake(outcome, "no.csv", "does not exist")


def test_missing_column(animateflow, tmp_path: Path):
    (tmp_path / "clips.csv").write_text("id,caption\n1,a fox\n")
    outcome = animateflow(
        "cache", "build", "--source", tmp_path / "clips.csv", "--videos", tmp_path, "--out", tmp_path / "o"
    )
    mistake(outcome, "videoid", "clips.csv")


@pytest.mark.parametrize("stage", ["domain-adapter", "motion-module"])
def test_wrong_path_of_a_cache(animateflow, tmp_path: Path, stage: str):
    outcome = animateflow("train", stage, "--cache", tmp_path / "none", "--out", tmp_path / "o")
    mistake(outcome, "none does not exist", "latent-cache")


def test_an_artifact_of_another_kind(animateflow, tmp_path: Path, a_record: Path):
    outcome = animateflow("train", "domain-adapter", "--cache", a_record, "--out", tmp_path / "o")
    mistake(outcome, "holds a letters, not a latent-cache")


def test_no_such_model(animateflow, tmp_path: Path):
    outcome = animateflow(
        "animate", "--base", tmp_path / "toonyou.safetensors", "--prompt", "x", "--out", tmp_path / "o"
    )
    mistake(outcome, "toonyou.safetensors does not exist")


def test_no_network_for_a_hub_model(animateflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    started = time.monotonic()
    outcome = animateflow("animate", "--base", "someone/a-model", "--prompt", "x", "--out", tmp_path / "o")
    mistake(outcome, "someone/a-model", "no network")
    assert time.monotonic() - started < 60


def test_unwritable_output(animateflow, tmp_path: Path):
    (tmp_path / "file").write_text("")
    mistake(
        animateflow("pocket", "clips", "--count", 1, "--out", tmp_path / "file" / "o"), "cannot be written", "--out"
    )
    mistake(animateflow("demo", "--out", tmp_path / "file" / "o"), "cannot be written", "--out")


def test_no_such_weights(animateflow, tmp_path: Path):
    mistake(animateflow("weights", "info", tmp_path / "none.safetensors"), "none.safetensors")
    mistake(animateflow("weights", "export", tmp_path / "none", "--out", tmp_path / "o.safetensors"), "none")


def test_a_scale_that_is_no_number(animateflow, tmp_path: Path):
    outcome = animateflow(
        "animate", "--prompt", "x", "--motion-lora", "zoom.safetensors:strong", "--out", tmp_path / "o"
    )
    mistake(outcome, "'strong' is no number", "FILE:SCALE")


def test_unknown_flow_and_no_server(animateflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    mistake(animateflow("run", "train"), "no flow 'train'", "train-motion-module")
    mistake(animateflow("run", "benchmark", "--state", tmp_path), "No Prefect server is running", "animateflow up")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    mistake(animateflow("run", "benchmark", "--state", tmp_path), "PREFECT_API_URL=http://127.0.0.1:9/api")


def test_failed_work_is_exit_code_1_and_ctrl_c_130(animateflow, monkeypatch: pytest.MonkeyPatch):
    from infra.errors import WorkError

    def fail(*_: object) -> None:
        raise WorkError("The disk is full.", "", "Free some space.")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.cli.doctor.examine", fail)
    outcome = animateflow("doctor")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, "Error: The disk is full. Free some space.")
    monkeypatch.setattr("flows.cli.doctor.examine", interrupt)
    outcome = animateflow("doctor")
    assert outcome.code == 130
    assert "same command again" in outcome.err


def test_pocket_clips_are_drawn_in_webvid_form(animateflow, tmp_path: Path):
    assert animateflow("pocket", "clips", "--count", 2, "--seed", 3, "--out", tmp_path / "clips").code == 0
    lines = (tmp_path / "clips" / "clips.csv").read_text().splitlines()
    assert lines[0] == "videoid,contentUrl,duration,page_dir,name"
    assert len(list((tmp_path / "clips").rglob("*.mp4"))) == len(lines) - 1 == 2
    mistake(animateflow("pocket", "clips", "--domain", "dirty", "--out", tmp_path / "x"), "'dirty'", "clean, stock")


def test_weights_given_as_other_weights(animateflow, tmp_path: Path):
    """Artifacts and bare files alike: the message says what they are and where they belong."""
    folder, out = POCKET / "domain-adapter", tmp_path / "o"
    module = ("--motion-module", POCKET / "motion-module")
    for given in (folder, folder / "domain_adapter.safetensors"):
        outcome = animateflow("animate", "--prompt", "x", *module, "--motion-lora", given, "--out", out)
        mistake(outcome, "is a domain adapter, not a MotionLoRA", "not trained on motion", "--domain-adapter")
    lora = POCKET / "motion-lora-zoom-in"
    outcome = animateflow("animate", "--prompt", "x", "--motion-module", lora, "--out", out)
    mistake(outcome, "is a MotionLoRA, not a motion module", "Pass it as --motion-lora")
    outcome = animateflow("animate", "--prompt", "x", "--base", POCKET / "neon.safetensors", "--out", out)
    mistake(outcome, "is a LoRA of an image model", "Pass it as --lora")
    outcome = animateflow("animate", "--prompt", "x", *module, "--controlnet", lora, "--out", out)
    mistake(outcome, "is not a ControlNet")


def test_a_typing_error_shows_before_a_flow_is_started(animateflow):
    mistake(animateflow("run", "train-motion-module", "--set", "motion_module.train.stepz=3"), "stepz")


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (("cache", "build", "--source", "a.csv", "--out", "o"), "shots.fps=4"),
        (("cache", "build", "--shots", "--source", "a.csv", "--out", "o"), "cache.fps=4"),
        (("cache", "plan", "--source", "a.csv"), "motion_module.train.steps=4"),
        (("train", "domain-adapter", "--cache", "c", "--out", "o"), "motion_module.train.steps=4"),
        (("train", "motion-module", "--cache", "c", "--out", "o"), "cache.fps=4"),
        (("animate", "--prompt", "x", "--out", "o"), "benchmark.references=4"),
        (("benchmark", "--out", "o"), "animation.steps=4"),
    ],
)
def test_a_setting_that_the_command_does_not_use_is_refused(animateflow, command: tuple[str, ...], setting: str):
    mistake(animateflow(*command, "--set", setting), f"--set {setting} has no effect here")


def test_weights_go_to_the_original_format_and_back(animateflow, tmp_path: Path):
    from safetensors.torch import load_file

    file, folder, again = tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.safetensors"
    assert animateflow("weights", "export", POCKET / "motion-module", "--out", file).code == 0
    assert animateflow("weights", "import", file, "--out", folder).code == 0
    assert animateflow("weights", "export", folder, "--out", again).code == 0
    first, second = load_file(file), load_file(again)
    assert first.keys() == second.keys()
    assert all(bool((first[name] == second[name]).all()) for name in first)
    described = json.loads(animateflow("weights", "info", file, "--hash", "--json").out)
    assert (described["kind"], described["format"], described["parameters"]) == ("motion-module", "original", 958_272)
    assert described["hash_sha256"] == described["metadata"]["modelspec.hash_sha256"]
    assert "motion-module" in animateflow("weights", "info", file).out
    mistake(animateflow("weights", "import", folder, "--out", tmp_path / "x"), "folder")

    before = file.read_bytes()
    mistake(animateflow("weights", "import", file, "--out", file), "is a file", "Choose a new folder")
    mistake(animateflow("weights", "import", file, "--out", tmp_path), "a folder with other files")
    mistake(animateflow("weights", "export", folder, "--out", tmp_path), "ends in neither .safetensors nor .ckpt")
    mistake(
        animateflow("weights", "export", folder, "--out", file / "b.safetensors"), "cannot be written", "What was there"
    )
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "folder"]
    lora = tmp_path / "lora.safetensors"
    assert animateflow("weights", "export", POCKET / "motion-lora-zoom-in", "--out", lora).code == 0
    for program, name in (("a1111", "a1111.safetensors"), ("official", "lora.ckpt"), ("diffusers", "for-diffusers")):
        export = ("weights", "export", POCKET / "motion-lora-zoom-in", "--for", program, "--out", tmp_path / name)
        assert animateflow(*export).code == 0
    back = tmp_path / "back.safetensors"
    mistake(
        animateflow("weights", "import", lora, "--preset", "v1", "--out", back),
        "--preset can be set for a motion module only",
    )
    assert animateflow("weights", "import", lora, "--out", back).code == 0


def test_a_fresh_motion_module_from_its_preset_alone(animateflow, tmp_path: Path):
    out = tmp_path / "fresh.safetensors"
    done = animateflow("weights", "export", "--fresh", "from-base", "--base", POCKET / "base", "--out", out)
    assert done.code == 0
    assert "from-base" in animateflow("weights", "info", out).out
    mistake(animateflow("weights", "export", "--fresh", "v2", "--base", "sdxl", "--out", out), "Preset v2 is for")
    mistake(animateflow("weights", "export", "--out", out), "Either weights or --fresh")
    assert animateflow("weights", "export", "--fresh", "v9", "--out", out).code == 2
