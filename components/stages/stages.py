"""The three training stages, in the paper's order (sec. 4): domain adapter, motion module, MotionLoRA.

Each reads a base model and a latent cache, trains one kind of weights with everything else frozen, and seals one
artifact that holds them in diffusers' format and in the original one, both read back before sealing. The training
itself may run on workers: they leave the weights in the artifact's draft, and whoever asked for them seals it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pydantic import Field

from components.base.model import BaseModel, fingerprint_of
from components.diffusion.objective import image_predictor, video_predictor
from components.files.paths import weights_input
from components.lora import domain_adapter as adapters
from components.lora import motion_lora
from components.motion.files import load_motion_module, shape_metadata
from components.motion.module import MotionModuleConfig, config_metadata, fresh_motion_adapter, motion_state_dict
from components.stages.models import load_for, motion_parameters, start_lora, task_of, video_unet
from components.stages.outputs import save_lora, save_motion
from components.train.batch import BatchSource
from components.train.config import TrainConfig
from components.train.loop.launch import InThisProcess, Job, Launch, OnStep, check_share
from components.train.loop.trainer import TrainResult, train
from components.train.ranks import place_of
from components.train.step import Task
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact, Draft, Input
from infra.artifacts.sealing import write_json
from infra.config import Config, execution

FIGURES = "figures.json"
HERE = InThisProcess()


class DomainAdapterTraining(Config):
    """Stage 1: LoRA on the image layers, on single frames."""

    train: TrainConfig = TrainConfig()
    """How it is trained."""
    rank: int = Field(128, ge=1)
    """Rank of the LoRA; 128 is what the released v3 adapter implies."""
    init_from: Path | None = execution(None)
    """Domain adapter to start from; its content, not its path, is part of the identity."""


class MotionModuleTraining(MotionModuleConfig):
    """Stage 2: the motion module, on clips, the domain adapter active and frozen."""

    train: TrainConfig = TrainConfig()
    """How it is trained."""
    init_from: Path | None = execution(None)
    """Motion module to start from (its shape, preset and norms then count); its content is part of the identity."""


class MotionLoraTraining(Config):
    """Stage 3: LoRA on the temporal attention, on clips of one shot type."""

    train: TrainConfig = TrainConfig(steps=2000)
    """How it is trained."""
    rank: int = Field(64, ge=1)
    """Rank of the LoRA; 64 is what the released MotionLoRAs imply."""
    init_from: Path | None = execution(None)
    """MotionLoRA to start from; its content, not its path, is part of the identity."""


def train_domain_adapter(
    config: DomainAdapterTraining,
    base: BaseModel,
    cache: BatchSource,
    cache_input: Input,
    out: Path,
    on_step: OnStep = None,
    launch: Launch = HERE,
) -> Artifact:
    """Trains and seals a `domain-adapter`.

    Raises:
        UserError: the cache was encoded by another VAE, `init_from` does not fit, or workers cannot share a batch.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    check_share(config.train.batch_size, launch)
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_start(config.init_from, adapters.KIND)}
    if done := artifacts.find(out, adapters.KIND, config, inputs):
        return done
    with artifacts.draft(out, adapters.KIND, config, inputs, scratch="checkpoints") as draft:
        work = partial(_domain_adapter, config, base, cache, inputs, draft.folder)
        _run(launch, Job("domain adapter", draft.folder, config.train.device, work), draft, on_step)
    return artifacts.load(out, adapters.KIND)


def _domain_adapter(
    config: DomainAdapterTraining,
    base: BaseModel,
    cache: BatchSource,
    inputs: Mapping[str, Input],
    folder: Path,
    on_step: OnStep,
) -> None:
    pipeline = load_for(base, cache)
    trainable = adapters.add_domain_adapter(pipeline.unet, config.rank, config.train.seed)
    if config.init_from is not None:
        start_lora(trainable, adapters.load_domain_adapter(config.init_from), config.init_from)
    task = task_of("domain adapter", pipeline, pipeline.unet, image_predictor, trainable, cache, config.train)
    result = train(config.train, task, cache, folder, on_step)
    if _leaves(result, config.train, folder):
        notes = _notes(config, task, inputs)
        save_lora(folder, adapters.KIND, adapters.WEIGHTS_NAME, result.weights, notes)


def train_motion_module(
    config: MotionModuleTraining,
    base: BaseModel,
    cache: BatchSource,
    cache_input: Input,
    out: Path,
    domain_adapter: Path | None = None,
    on_step: OnStep = None,
    launch: Launch = HERE,
) -> Artifact:
    """Trains and seals a `motion-module`; a domain adapter is active at scale 1 and frozen (paper sec. 4.4).

    Raises:
        UserError: another VAE's cache, a preset for another base model, a window longer than the module's, or workers
            that cannot share a batch.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    check_share(config.train.batch_size, launch)
    kind = "motion-module"
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_start(config.init_from, kind)}
    if domain_adapter is not None:
        inputs["domain_adapter"] = weights_input(domain_adapter, adapters.KIND)
    if done := artifacts.find(out, kind, config, inputs):
        return done
    with artifacts.draft(out, kind, config, inputs, scratch="checkpoints") as draft:
        work = partial(_motion_module, config, base, cache, domain_adapter, inputs, draft.folder)
        _run(launch, Job("motion module", draft.folder, config.train.device, work), draft, on_step)
    return artifacts.load(out, kind)


def _motion_module(
    config: MotionModuleTraining,
    base: BaseModel,
    cache: BatchSource,
    domain_adapter: Path | None,
    inputs: Mapping[str, Input],
    folder: Path,
    on_step: OnStep,
) -> None:
    pipeline = load_for(base, cache, domain_adapter)
    if config.init_from is None:
        adapter = fresh_motion_adapter(config, pipeline.unet, config.train.seed)
        of_module = {name: str(value) for name, value in config_metadata(config).items()}
    else:
        adapter, of_module = load_motion_module(config.init_from, config.max_frames)
    unet = video_unet(pipeline, adapter, of_module, config.train)
    trainable = motion_parameters(unet)
    task = task_of("motion module", pipeline, unet, video_predictor, trainable, cache, config.train)
    result = train(config.train, task, cache, folder, on_step)
    if _leaves(result, config.train, folder):
        of_shape = {name: of_module.get(name) for name in ("preset", "group_norm", "image_group_norm")}
        notes = {**of_shape, **shape_metadata(adapter), **_notes(config, task, inputs)}
        save_motion(folder, adapter, {**motion_state_dict(unet), **result.weights}, notes)


def train_motion_lora(
    config: MotionLoraTraining,
    base: BaseModel,
    cache: BatchSource,
    cache_input: Input,
    out: Path,
    motion_module: Path,
    domain_adapter: Path | None = None,
    on_step: OnStep = None,
    launch: Launch = HERE,
) -> Artifact:
    """Trains and seals a `motion-lora` on a frozen motion module, a domain adapter active where one is given.

    Raises:
        UserError: another VAE's cache, a motion module of another base, a window longer than the module's, or workers
            that cannot share a batch.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    check_share(config.train.batch_size, launch)
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_start(config.init_from, motion_lora.KIND)}
    inputs["motion_module"] = weights_input(motion_module, "motion-module")
    if domain_adapter is not None:
        inputs["domain_adapter"] = weights_input(domain_adapter, adapters.KIND)
    if done := artifacts.find(out, motion_lora.KIND, config, inputs):
        return done
    with artifacts.draft(out, motion_lora.KIND, config, inputs, scratch="checkpoints") as draft:
        work = partial(_motion_lora, config, base, cache, motion_module, domain_adapter, inputs, draft.folder)
        _run(launch, Job("MotionLoRA", draft.folder, config.train.device, work), draft, on_step)
    return artifacts.load(out, motion_lora.KIND)


def _motion_lora(
    config: MotionLoraTraining,
    base: BaseModel,
    cache: BatchSource,
    motion_module: Path,
    domain_adapter: Path | None,
    inputs: Mapping[str, Input],
    folder: Path,
    on_step: OnStep,
) -> None:
    pipeline = load_for(base, cache, domain_adapter)
    adapter, of_module = load_motion_module(motion_module)
    unet = video_unet(pipeline, adapter, of_module, config.train)
    del adapter  # its tensors are in the UNet
    trainable = motion_lora.add_motion_lora(unet, config.rank, config.train.seed)
    if config.init_from is not None:
        start_lora(trainable, motion_lora.load_motion_lora(config.init_from), config.init_from)
    task = task_of("MotionLoRA", pipeline, unet, video_predictor, trainable, cache, config.train)
    result = train(config.train, task, cache, folder, on_step)
    if _leaves(result, config.train, folder):
        of_lora = {name: of_module.get(name) for name in ("preset", "group_norm", "image_group_norm", "max_frames")}
        notes = {**of_lora, **_notes(config, task, inputs)}
        save_lora(folder, motion_lora.KIND, motion_lora.WEIGHTS_NAME, result.weights, notes)


def _leaves(result: TrainResult, config: TrainConfig, folder: Path) -> bool:
    """Whether this process leaves the result for all; its figures are then in `folder`."""
    place = place_of(config.device)
    if place.rank == 0:
        figures = {"counts": result.counts, "metrics": {**result.metrics, "workers": place.ranks}}
        write_json(folder / FIGURES, figures)
    return place.rank == 0


def _run(launch: Launch, job: Job, draft: Draft, on_step: OnStep) -> None:
    """Runs the training and takes its figures into the draft, where it has left everything else."""
    launch(job, on_step)
    figures = json.loads((draft.folder / FIGURES).read_text(encoding="utf-8"))
    draft.counts.update(figures["counts"])
    draft.metrics.update(figures["metrics"])
    (draft.folder / FIGURES).unlink()


def _start(path: Path | None, kind: str) -> dict[str, Input]:
    return {} if path is None else {"init_from": weights_input(path, kind)}


def _notes(
    config: DomainAdapterTraining | MotionModuleTraining | MotionLoraTraining, task: Task, inputs: Mapping[str, Input]
) -> dict[str, object]:
    return {
        "base_model": inputs["base"].name,
        "base_model_fingerprint": inputs["base"].fingerprint,
        "beta_schedule": config.train.beta_schedule,
        "prediction_type": task.prediction,
        "recipe_fingerprint": config.fingerprint(),
        "frames": config.train.frames,
    }
