"""What can be wrong with a training on the command line: one line, exit code 2, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data_prep.cache_files import cache_row, write_cache
from tests.flows.test_cli import POCKET, mistake

QUICK = ["--set", "domain_adapter.init_from=null", "--set", "domain_adapter.train.held_out_clips=0"]
QUICK += ["--set", "domain_adapter.train.steps=2", "--set", "domain_adapter.train.batch_size=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of noise that pass for latents of the pocket VAE."""
    return cache_of(tmp_path_factory.mktemp("caches") / "fitting", 16, 16, pocket_vae())


def pocket_vae() -> str:
    from components.base_model import BaseModel, load_base, vae_sha256

    return vae_sha256(load_base(BaseModel(path=POCKET / "base")).vae)


def cache_of(folder: Path, height: int, width: int, vae: str) -> Path:
    rows = []
    for index in range(6):
        latents = np.random.default_rng(index).standard_normal((20, 4, height, width)).astype(np.float16)
        rows.append(cache_row(index, 20, latents=latents.tobytes(), latents_shape=list(latents.shape)))
    write_cache(folder, rows)
    record = json.loads((folder / "record.json").read_text())
    record["metrics"] |= {"vae_sha256": vae, "scaling_factor": 0.5}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["domain_adapter.train.bach_size=2"], ["'bach_size' is not known", "batch_size", "--set"]),
        (["domain_adaptor.rank=2"], ["'domain_adaptor' is not known", "domain_adapter"]),
        (["domain_adapter.train.warmup_steps=60"], ["warmup_steps=60 leaves nothing of steps=60"]),
        (
            ["domain_adapter.train.optimizer=adamw-8bit", "domain_adapter.train.device=cpu"],
            ["optimizer=adamw-8bit needs CUDA"],
        ),
        (["domain_adapter.train.betas=[0.9, 1.5]"], ["train.betas.1", "less than 1", "1.5"]),
        (["domain_adapter.train.ema_decay=1.0"], ["train.ema_decay", "less than 1"]),
        (["domain_adapter.train.frames=0"], ["train.frames", "greater than or equal to 1"]),
        (["domain_adapter.train.trackers=[wandb]"], ["wandb", "not installed", "uv pip install wandb"]),
    ],
)
def test_settings(animateflow, cache: Path, tmp_path: Path, overrides: list[str], words: list[str]):
    given = [part for override in overrides for part in ("--set", override)]
    outcome = animateflow("train", "domain-adapter", "--cache", cache, "--out", tmp_path / "o", *given)
    mistake(outcome, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_another_vae_or_an_odd_size_or_of_short_clips(animateflow, cache: Path, tmp_path: Path):
    other = cache_of(tmp_path / "other", 16, 16, "v" * 64)
    mistake(
        animateflow("train", "domain-adapter", "--cache", other, "--out", tmp_path / "out" / "o"), "encoded by the VAE"
    )
    odd = cache_of(tmp_path / "odd", 18, 16, pocket_vae())
    mistake(
        animateflow("train", "domain-adapter", "--cache", odd, "--out", tmp_path / "out" / "o"),
        "64x72 pixels", "multiples of 16", "cache.size",
    )  # fmt: skip
    long = ["--set", "motion_module.train.frames=24"]
    mistake(
        animateflow("train", "motion-module", "--cache", cache, "--out", tmp_path / "out" / "o", *long), "24 frames"
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_preset_for_another_base_model(animateflow, cache: Path, tmp_path: Path):
    fresh = ["--set", "motion_module.init_from=null", "--set", "motion_module.preset=sdxl-beta"]
    outcome = animateflow("train", "motion-module", "--cache", cache, "--out", tmp_path / "o", *fresh)
    mistake(outcome, "sdxl-beta")
    assert list(tmp_path.iterdir()) == []


def test_more_workers_than_a_batch_has_clips(animateflow, cache: Path, tmp_path: Path):
    outcome = animateflow("train", "domain-adapter", "--cache", cache, "--out", tmp_path / "o", "--workers", 5)
    mistake(outcome, "5 workers cannot share batches of 16")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(animateflow, cache: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    outcome = animateflow("train", "domain-adapter", "--cache", cache, "--out", tmp_path / "file" / "o")
    mistake(outcome, "cannot be written", "--out")


@pytest.mark.parametrize(
    ("size", "every", "words"),
    [
        ("64k", 50, ["There is no room left", "Nothing of this run is left"]),
        ("400k", 1, ["checkpoint", "No space left on device", "Make room"]),
    ],
)
def test_a_full_disk(cache: Path, tmp_path: Path, size: str, every: int, words: list[str]):
    """On a small tmpfs: at the end, where the weights do not fit, and while training, where a checkpoint does not."""
    out, code = tmp_path / "disk" / "o", "import sys; from flows.cli import main; sys.exit(main())"
    training = ["train", "domain-adapter", "--cache", cache, "--out", out, *QUICK]
    training += ["--set", f"domain_adapter.train.checkpoint_every_steps={every}"]
    command = f'mount -t tmpfs -o size={size} none {out.parent} && "$@"; code=$?; ls -A {out.parent} >&2; exit $code'
    out.parent.mkdir()
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", command, "bash", sys.executable, "-c", code, *map(str, training)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines
    assert done.stderr.rstrip().splitlines()[-1] == lines[0], "nothing is left on the disk"
    assert "Traceback" not in done.stderr
