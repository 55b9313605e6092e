"""Trainings in processes of their own, which kill themselves with SIGKILL: at any time, or while they write.

A forked server has imported all that a training needs, so that one takes a second or two.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401
import peft  # noqa: F401
import torch
import torch.utils.flop_counter
import torch.utils.tensorboard
from diffusers import AnimateDiffPipeline, MotionAdapter, StableDiffusionPipeline, UNetMotionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

from components.base.model import BaseModel
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.stage import train_stage
from components.train import step
from components.train.batch import ClipBatch
from components.train.config import TrainConfig
from components.train.estimate import Memory
from components.train.loop import checkpoints, trainer
from components.train.report.log import StepReport
from tests.components.conftest import CACHE_INPUT, DrawnClips

STEPS = 6
TRAIN = TrainConfig(
    steps=STEPS, batch_size=2, gradient_accumulation=2, frames=3, learning_rate=1e-3, warmup_steps=2,
    learning_rate_decay="cosine", ema_decay=0.9, caption_dropout=0.5, offset_noise=0.1, stratified_timesteps=True,
    held_out_clips=2, held_out_every_steps=2, sample_every_steps=0, checkpoint_every_steps=1, log_every_steps=2,
    keep_checkpoints=2, device="cpu",
)  # fmt: skip
STAGES = {
    stage.kind: stage
    for stage in (
        DomainAdapterTraining(train=TRAIN, rank=2),
        MotionModuleTraining(train=TRAIN, preset="from-base"),
        MotionLoraTraining(train=TRAIN, rank=2),
    )
}
WEIGHTS = {
    "domain-adapter": "domain_adapter.safetensors",
    "motion-module": "diffusion_pytorch_model.safetensors",
    "motion-lora": "motion_lora.safetensors",
}


@dataclass(frozen=True)
class Given:
    """A training, and when its process dies: `after_seconds` of its first step, or at the `at_write`-th file of
    checkpoints that it writes, with half of it on disk. None of both runs to its end."""

    stage: str
    base: Path
    vae_sha256: str
    motion_module: Path
    out: Path
    after_seconds: float | None = None
    at_write: int | None = None


@dataclass
class Noted(DrawnClips):
    """Writes down the clips of every batch."""

    file: Path = Path()

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        for number, batch in enumerate(
            super().batches(batch_size, frames, seed, start_step, rank, world_size), start_step
        ):
            line = json.dumps([number, batch.captions, batch.latents_BCFhw.double().sum().item()])
            with self.file.open("a") as handle:
                handle.write(line + "\n")
            yield batch


def run(given: Given) -> int:
    """The exit status of the process: 0, or -9."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train, args=(given,))
    process.start()
    process.join()
    return int(process.exitcode)


def kept(out: Path) -> Path:
    """The last checkpoint of a training, which is removed when its artifact is sealed."""
    return out.with_name(out.name + "-checkpoint")


def batches_of(out: Path) -> Path:
    return out.with_name(out.name + "-batches")


def _train(given: Given) -> None:
    torch.set_num_threads(1)
    # What kills are not about, and two thirds of so small a training's time: FLOPs, bytes and plots.
    step.step_flops = lambda *_, **__: 1
    step.memory = lambda *_, **__: {"none": Memory({})}
    trainer.plot_loss = lambda *_: None
    if given.at_write is not None:
        _die_writing(given.at_write)
    clips = Noted(given.vae_sha256, file=batches_of(given.out))
    base, folder = BaseModel(path=given.base), given.out.with_name(f".{given.out.name}.partial")

    death = threading.Timer(given.after_seconds or 0.0, os.kill, (os.getpid(), signal.SIGKILL))

    def on_step(report: StepReport) -> None:
        if given.after_seconds is not None and death.ident is None:
            death.start()
        if report.step == STEPS:
            last = folder / "checkpoints" / f"step-{STEPS - 1:08d}"
            while not (last / checkpoints.MANIFEST).exists():
                time.sleep(0.01)
            shutil.copytree(last, kept(given.out), dirs_exist_ok=True)

    weights = {"motion_module": given.motion_module} if given.stage == "motion-lora" else {}
    train_stage(STAGES[given.stage], base, clips, CACHE_INPUT, given.out, weights, on_step)


def _die_writing(at: int) -> None:
    """The `at`-th tensor file or JSON of checkpoints ends in its middle, and so does this process."""
    written = 0

    def dying(write: Any) -> Any:
        def counted(*given: Any) -> None:
            nonlocal written
            written += 1
            write(*given)
            if written == at:
                path = next(each for each in given if isinstance(each, Path))
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        return counted

    for name in ("save_file", "write_json"):
        setattr(checkpoints, name, dying(getattr(checkpoints, name)))
