"""What can be wrong with a training on the command line: one line, exit code 2, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data_prep.cache_files import cache_row, write_cache
from tests.flows.cli.test_cli import POCKET, mistake

QUICK = ["--set", "domain_adapter.init_from=null", "--set", "domain_adapter.train.held_out_clips=0"]
QUICK += ["--set", "domain_adapter.train.steps=2", "--set", "domain_adapter.train.batch_size=2"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of noise that pass for latents of the pocket VAE."""
    return cache_of(tmp_path_factory.mktemp("caches") / "fitting", 16, 16, pocket_vae())


def pocket_vae() -> str:
    from components.base.model import BaseModel, load_base, vae_sha256

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
        (
            ["domain_adapter.train.warmup_steps=60"],
            ["domain_adapter.train: warmup_steps=60 leaves nothing of steps=60. Correct"],
        ),
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
        animateflow("train", "motion-module", "--cache", cache, "--out", tmp_path / "out" / "o", *long),
        "has 20 frames; 24 are asked for",
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


def on_a_small_disk(disk: Path, script: str, cache: Path, *more: str) -> tuple[int, str]:
    """Runs a shell script on a tmpfs of its own; "$@" in it trains a domain adapter to `o` on that."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    disk.mkdir()
    main = [sys.executable, "-c", "from flows.cli.main import main; main()"]
    training = ["train", "domain-adapter", "--cache", cache, "--out", disk / "o", *QUICK, *more]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script.replace("DISK", str(disk)), "bash", *main, *map(str, training)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_disk_too_small_for_the_weights(cache: Path, tmp_path: Path):
    script = 'mount -t tmpfs -o size=64k none DISK && "$@"; code=$?; ls -A DISK >&2; exit $code'
    code, said = on_a_small_disk(tmp_path / "disk", script, cache)
    assert code == 2, said
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("Error: There is no room left"), "nothing is left on the disk"
    assert "Nothing of this run is left" in last
    assert "Free some space" in last


def test_a_disk_that_is_full_with_the_second_checkpoint(cache: Path, tmp_path: Path):
    """The first one is kept, and with more room the run resumes from there."""
    script = (
        'mount -t tmpfs -o size=SIZE none DISK && "$@"; code=$?; ls DISK/.o.partial/checkpoints >&2; '
        'mount -o remount,size=64m DISK && "$@" && ls DISK/o >&2 && exit $code'
    )
    every = ["--set", "domain_adapter.train.checkpoint_every_steps=1", "--set", "domain_adapter.train.steps=6"]
    code, said = on_a_small_disk(tmp_path / "disk", script.replace("SIZE", "1900k"), cache, *every)
    assert code == 2, said
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, said
    assert "Free some space" in errors[0]
    assert "step-00000001\n" in said
    assert "resumes from step 1 of 6" in said
    assert "domain_adapter.safetensors" in said


def test_a_source_without_a_usable_video_fails_and_its_cache_trains_nothing(animateflow, tmp_path: Path):
    (tmp_path / "footage").mkdir()
    (tmp_path / "footage" / "a.mp4").write_text("no video")
    (tmp_path / "footage" / "b.mp4").write_bytes(b"")
    out = tmp_path / "cache"
    outcome = animateflow("cache", "build", "--source", tmp_path / "footage", "--out", out)
    mistake(outcome, "Not one video of", "1 empty_file", "1 not_a_video", "rejected.parquet")
    assert (out / "rejected.parquet").is_file()
    for held_out in (0, 8):
        setting = ("--set", f"domain_adapter.train.held_out_clips={held_out}")
        trained = animateflow("train", "domain-adapter", "--cache", out, "--out", tmp_path / "adapter", *setting)
        mistake(trained, "holds no clip")
    mistake(animateflow("train", "domain-adapter", "--cache", out, "--out", tmp_path / "o", "--plan"), "holds no clip")
    assert not (tmp_path / "adapter").exists()


def test_the_caption_gap_of_a_base_model(animateflow, cache: Path, tmp_path: Path):
    """Of a word that every caption has; words that no caption has are told."""
    base, figures = POCKET / "base", tmp_path / "gap.json"
    measured = ("base", "gap", "--base", base, "--cache", cache, "--json", figures)
    outcome = animateflow(*measured, "--words", "clip,red circle")
    assert outcome.code == 0, outcome.err
    assert "clip / red circle   (6 stills)" in outcome.out
    assert "the difference" in outcome.out
    rows = json.loads(figures.read_text())["gaps"]
    assert [row["timestep"] for row in rows] == [100, 300, 500, 700, 850, 950]
    assert all(row["low"] <= row["gap"] <= row["high"] for row in rows)
    mistake(animateflow(*measured, "--words", "cat,dog"), "None of", "cat, dog")
    mistake(animateflow(*measured, "--words", "red"), "fewer than two words")
