"""Two gloo ranks through Ray Train: one process's trajectory, a killed worker, errors and signals, on two CPU cores."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.base.model import BaseModel
from components.stages.motion_lora import MotionLoraTraining
from components.stages.stage import train_stage
from components.train.batch import ClipBatch
from components.train.config import TrainConfig
from components.train.loop.launch import InThisProcess, Job, OnStep, OnWorkers
from components.train.loop.trainer import TrainingStoppedError
from components.train.report.log import StepReport
from infra.artifacts import artifacts
from infra.errors import UserError
from tests.components.conftest import CACHE_INPUT, DrawnClips

TRAIN = TrainConfig(
    steps=8, batch_size=4, gradient_accumulation=2, frames=4, learning_rate=1e-3, held_out_clips=2, log_every_steps=1,
    ema_decay=0.9, caption_dropout=0.5, checkpoint_every_steps=2, sample_every_steps=0, device="cpu",
)  # fmt: skip
CONFIG = MotionLoraTraining(train=TRAIN, rank=2)
TWO = OnWorkers(2)
pytestmark = pytest.mark.usefixtures("ray_local")


@dataclass(frozen=True)
class Counted:
    """Two workers, each of which writes down how often DDP has it exchange gradients, and over how many buckets."""

    folder: Path
    workers: int = 2

    def __call__(self, job: Job, on_step: OnStep) -> None:
        TWO(replace(job, work=partial(counting, job.work, self.folder)), on_step)


def counting(work: Any, folder: Path, on_step: OnStep) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    plain, buckets = torch.nn.parallel.DistributedDataParallel, []

    def hook(state, bucket):  # PyTorch wants its very classes as annotations, or none
        buckets.append(bucket.index())
        return allreduce_hook(None, bucket)

    class Hooked(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_comm_hook(None, hook)

    torch.nn.parallel.DistributedDataParallel = Hooked  # type: ignore[misc]
    try:
        work(on_step)
    finally:
        torch.nn.parallel.DistributedDataParallel = plain  # type: ignore[misc]
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(buckets))


@dataclass
class Deadly(DrawnClips):
    """Rank 1 is killed between the two batches of its fourth step, the first time, once step 2 is saved."""

    mark: Path
    saved: Path

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        for number, batch in enumerate(
            super().batches(batch_size, frames, seed, start_step, rank, world_size), start_step
        ):
            if rank == 1 and number == 7 and not self.mark.exists():
                while not self.saved.exists():
                    time.sleep(0.01)
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


@dataclass(frozen=True)
class Run:
    """A run on two workers that nothing went wrong with."""

    artifact: artifacts.Artifact
    weights: dict[str, torch.Tensor]
    reports: list[StepReport]
    buckets: dict[int, list[int]]
    """Of the gradients that each rank has exchanged with the other, in turn."""


def train(
    out: Path,
    base: BaseModel,
    clips: DrawnClips,
    module: Path,
    launch: Any = TWO,
    config: MotionLoraTraining = CONFIG,
    on_step: OnStep = None,
) -> tuple[artifacts.Artifact, dict[str, torch.Tensor]]:
    made = train_stage(config, base, clips, CACHE_INPUT, out, {"motion_module": module}, on_step=on_step, launch=launch)
    assert not list(out.glob("workers*"))
    return made, load_file(out / "motion_lora.safetensors")


@pytest.fixture(scope="module")
def module(trained: dict[str, Path]) -> Path:
    return trained["motion-module"]


@pytest.fixture(scope="module")
def two(
    base: BaseModel, clips: DrawnClips, module: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    folder, reports = tmp_path_factory.mktemp("two"), []
    made, weights = train(folder / "lora", base, clips, module, Counted(folder), on_step=reports.append)
    return Run(
        made, weights, reports, {rank: json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)}
    )


def test_two_workers_go_the_way_of_one_process(
    two: Run, base: BaseModel, clips: DrawnClips, module: Path, tmp_path: Path
) -> None:
    """Each rank has half the clips of every batch, so the mean over all is added up in another order: a gradient
    differs in its last bits, and AdamW makes steps of about the learning rate (1e-3) of gradients that are hardly more
    than that. After eight steps weights differ by 6e-9 in the mean and by 5e-6 at most; ranks with each other's noise
    differ by 1e-3 and 1e-2."""
    reports: list[StepReport] = []
    one, expected = train(tmp_path / "one", base, clips, module, InThisProcess(), on_step=reports.append)

    assert two.weights.keys() == expected.keys()
    apart = torch.cat([(two.weights[name] - expected[name]).abs().flatten() for name in expected])
    for name, tensor in expected.items():
        torch.testing.assert_close(two.weights[name], tensor, rtol=1e-4, atol=2e-5)
    assert apart.mean() < 1e-7
    assert max(tensor.abs().max() for tensor in expected.values()) > 1e-3
    assert [report.step for report in two.reports] == list(range(1, 9))
    assert [report.loss for report in two.reports] == pytest.approx([report.loss for report in reports], rel=1e-6)
    assert two.artifact.metrics["held_out_loss"] == pytest.approx(one.metrics["held_out_loss"], rel=1e-5)
    assert (one.metrics["workers"], two.artifact.metrics["workers"]) == (1, 2)
    assert two.artifact.fingerprint == one.fingerprint
    assert sorted(path.name for path in two.artifact.folder.iterdir()) == sorted(
        path.name for path in one.folder.iterdir()
    )


def test_gradients_are_exchanged_once_a_step(two: Run) -> None:
    """Not once for each of the two batches that are accumulated in it."""
    for buckets in two.buckets.values():
        assert buckets.count(0) == TRAIN.steps


def test_a_killed_worker_is_got_over(
    two: Run, base: BaseModel, clips: DrawnClips, module: Path, tmp_path: Path
) -> None:
    """It ends with the bits of a run that nothing happened to."""
    saved = tmp_path / ".lora.partial" / "checkpoints" / "step-00000002" / "manifest.json"
    deadly, steps = Deadly(clips.vae_sha256, tmp_path / "killed", saved), []
    _, found = train(tmp_path / "lora", base, deadly, module, on_step=lambda report: steps.append(report.step))
    assert deadly.mark.exists()
    assert steps == [1, 2, 3, 3, 4, 5, 6, 7, 8], "from the checkpoint of step 2"
    assert all(torch.equal(found[name], two.weights[name]) for name in found)


def refuse(on_step: OnStep) -> None:
    raise UserError("The cache was encoded by the VAE abc.", "Latents are noise to another.", "Build it again.")


def test_a_mistake_seen_by_a_worker_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The cache was encoded by the VAE abc") as caught:
        TWO(Job("motion LoRA", tmp_path, "cpu", refuse), None)
    assert caught.value.exit_code == 2


def test_a_signal_to_the_driver_stops_and_saves(
    base: BaseModel, clips: DrawnClips, module: Path, tmp_path: Path
) -> None:
    config = CONFIG.replace(train=TRAIN.replace(steps=2000, checkpoint_every_steps=2000))
    steps: list[int] = []

    def stop(report: StepReport) -> None:
        if not steps:
            os.kill(os.getpid(), signal.SIGTERM)
        steps.append(report.step)

    with pytest.raises(TrainingStoppedError, match=r"stopped at step \d+ of 2000 \(SIGTERM\).*Run the same command"):
        train(tmp_path / "out", base, clips, module, config=config, on_step=stop)
    saved = sorted(path.name for path in (tmp_path / ".out.partial" / "checkpoints").iterdir())
    assert saved == [f"step-{steps[-1]:08d}"]
    assert not (tmp_path / ".out.partial" / "workers").exists()


def test_workers_that_cannot_share_are_refused_at_once(
    base: BaseModel, clips: DrawnClips, module: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="3 workers cannot share batches of 4 clips.*one of 1, 2, 4"):
        train(tmp_path / "out", base, clips, module, OnWorkers(3))
    with pytest.raises(UserError, match="4 workers need a CPU each, and Ray has 2.*Set --workers to 2 or less"):
        train(tmp_path / "out", base, clips, module, OnWorkers(4))
