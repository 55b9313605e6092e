"""The three training stages, in the paper's order (sec. 4): domain adapter, motion module, MotionLoRA.

Each reads a base model and a latent cache, trains one kind of weights with everything else frozen, and seals one
artifact that holds them in diffusers' format and in the original one, both read back before sealing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from components import domain_adapter as adapters
from components import lora, motion_lora
from components.base_model import BaseModel, fingerprint_of, load_base, vae_sha256
from components.batch import BatchSource
from components.checkpointing import checkpoint_activations
from components.formats import motion_notes, weights_input
from components.lora_stack import LoraStack
from components.motion_files import load_motion_module, shape_notes
from components.motion_module import (
    MotionModuleConfig,
    fresh_motion_adapter,
    insert,
    motion_state,
)
from components.objective import Predict, image_predictor, video_predictor
from components.stage_outputs import save_lora, save_motion
from components.text_states import TextStates
from components.train_config import TrainConfig
from components.train_log import StepReport
from components.trainer import Task, train
from infra import artifacts
from infra.artifacts import Artifact, Draft, Input
from infra.config import Config, execution
from infra.errors import UserError
from infra.runtime import pick_device

if TYPE_CHECKING:
    from diffusers import MotionAdapter, StableDiffusionPipeline, UNetMotionModel

OnStep = Callable[[StepReport], None] | None


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
) -> Artifact:
    """Trains and seals a `domain-adapter`.

    Raises:
        UserError: the cache was encoded by another VAE, or `init_from` does not fit.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_start(config.init_from, adapters.KIND)}
    if done := artifacts.find(out, adapters.KIND, config, inputs):
        return done
    with artifacts.draft(out, adapters.KIND, config, inputs, resumable=True) as draft:
        pipeline = _load(base, cache)
        trainable = adapters.add_domain_adapter(pipeline.unet, config.rank, config.train.seed)
        if config.init_from is not None:
            _start_lora(trainable, adapters.load_domain_adapter(config.init_from), config.init_from)
        checkpoint_activations(pipeline.unet, config.train.activation_checkpointing)
        task = _task("domain adapter", pipeline, pipeline.unet, image_predictor, trainable, 1, config.train.device)
        notes = _notes(config, base, inputs, config.train)
        weights = _train(config.train, task, cache, draft, on_step)
        save_lora(draft, adapters.KIND, adapters.WEIGHTS, weights, notes)
    return artifacts.load(out, adapters.KIND)


def train_motion_module(
    config: MotionModuleTraining,
    base: BaseModel,
    cache: BatchSource,
    cache_input: Input,
    out: Path,
    domain_adapter: Path | None = None,
    on_step: OnStep = None,
) -> Artifact:
    """Trains and seals a `motion-module`; a domain adapter is active at scale 1 and frozen (paper sec. 4.4).

    Raises:
        UserError: another VAE's cache, a preset for another base model, or a window longer than the module's.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    kind = "motion-module"
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_start(config.init_from, kind)}
    if domain_adapter is not None:
        inputs["domain_adapter"] = weights_input(domain_adapter, adapters.KIND)
    if done := artifacts.find(out, kind, config, inputs):
        return done
    with artifacts.draft(out, kind, config, inputs, resumable=True) as draft:
        pipeline = _load(base, cache)
        if domain_adapter is not None:
            LoraStack(pipeline.unet).add(adapters.KIND, adapters.load_domain_adapter(domain_adapter))
        if config.init_from is None:
            adapter = fresh_motion_adapter(config, pipeline.unet, config.train.seed)
            of_module = {name: str(value) for name, value in motion_notes(config).items()}
        else:
            adapter, of_module = load_motion_module(config.init_from, config.max_frames)
        unet = _video_unet(pipeline, adapter, of_module, config.train)
        trainable = _motion_parameters(unet)
        frames, device = config.train.frames, config.train.device
        task = _task("motion module", pipeline, unet, video_predictor, trainable, frames, device)
        of_shape = {name: of_module.get(name) for name in ("preset", "group_norm", "image_group_norm")}
        notes = {**of_shape, **shape_notes(adapter), **_notes(config, base, inputs, config.train)}
        weights = _train(config.train, task, cache, draft, on_step)
        save_motion(draft, adapter, {**motion_state(unet), **weights}, notes)
    return artifacts.load(out, kind)


def train_motion_lora(
    config: MotionLoraTraining,
    base: BaseModel,
    cache: BatchSource,
    cache_input: Input,
    out: Path,
    motion_module: Path,
    domain_adapter: Path | None = None,
    on_step: OnStep = None,
) -> Artifact:
    """Trains and seals a `motion-lora` on a frozen motion module, a domain adapter active where one is given.

    Raises:
        UserError: another VAE's cache, a motion module of another base, or a window longer than the module's.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_start(config.init_from, motion_lora.KIND)}
    inputs["motion_module"] = weights_input(motion_module, "motion-module")
    if domain_adapter is not None:
        inputs["domain_adapter"] = weights_input(domain_adapter, adapters.KIND)
    if done := artifacts.find(out, motion_lora.KIND, config, inputs):
        return done
    with artifacts.draft(out, motion_lora.KIND, config, inputs, resumable=True) as draft:
        pipeline = _load(base, cache)
        if domain_adapter is not None:
            LoraStack(pipeline.unet).add(adapters.KIND, adapters.load_domain_adapter(domain_adapter))
        adapter, of_module = load_motion_module(motion_module)
        unet = _video_unet(pipeline, adapter, of_module, config.train)
        del adapter  # its tensors are in the UNet
        trainable = motion_lora.add_motion_lora(unet, config.rank, config.train.seed)
        if config.init_from is not None:
            _start_lora(trainable, motion_lora.load_motion_lora(config.init_from), config.init_from)
        frames, device = config.train.frames, config.train.device
        task = _task("MotionLoRA", pipeline, unet, video_predictor, trainable, frames, device)
        of_lora = {name: of_module.get(name) for name in ("preset", "group_norm", "image_group_norm", "max_frames")}
        notes = {**of_lora, **_notes(config, base, inputs, config.train)}
        weights = _train(config.train, task, cache, draft, on_step)
        save_lora(draft, motion_lora.KIND, motion_lora.WEIGHTS, weights, notes)
    return artifacts.load(out, motion_lora.KIND)


def _load(base: BaseModel, cache: BatchSource) -> StableDiffusionPipeline:
    """The base model, on the CPU, after checking that the cache's latents are those of its VAE."""
    pipeline = load_base(base)
    own = vae_sha256(pipeline.vae)
    if own != cache.vae_sha256:
        raise UserError(
            f"The cache was encoded by the VAE {cache.vae_sha256[:12]} and {base.path} has the VAE {own[:12]}.",
            "Latents of one VAE are noise to a model that was trained on another's.",
            "Build the cache again with this base model's VAE, or train on the base model it was built for.",
        )
    return pipeline


def _video_unet(
    pipeline: StableDiffusionPipeline, adapter: MotionAdapter, notes: Mapping[str, Any], train_config: TrainConfig
) -> UNetMotionModel:
    longest = adapter.config.motion_max_seq_length
    if train_config.frames > longest:
        raise UserError(
            f"The training window has {train_config.frames} frames and the motion module {longest} positions.",
            "Frames past the last position cannot be told apart.",
            "Lower train.frames, or raise the motion module's max_frames.",
        )
    # The video model is a copy; the image UNet would be 3.2 GiB of SD 1.5 that nothing reads any more.
    pipeline.unet = unet = insert(pipeline.unet, adapter, notes["group_norm"], notes["image_group_norm"])
    checkpoint_activations(unet, train_config.activation_checkpointing)
    return unet


def _motion_parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Freezes all but the motion module; returns its parameters by name."""
    unet.requires_grad_(False)
    found = {name: parameter for name, parameter in unet.named_parameters() if ".motion_modules." in name}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def _task(
    title: str,
    pipeline: StableDiffusionPipeline,
    unet: nn.Module,
    predictor: Callable[[nn.Module], Predict],
    trainable: dict[str, nn.Parameter],
    frames: int,
    device: str,
) -> Task:
    text = TextStates(pipeline.tokenizer, pipeline.text_encoder, pick_device(device))
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    return Task(title, unet, predictor, trainable, text, pipeline.vae.config.scaling_factor, frames, prediction)


def _train(config: TrainConfig, task: Task, cache: BatchSource, draft: Draft, on_step: OnStep) -> dict[str, Tensor]:
    result = train(config, task, cache, draft.folder, on_step)
    shutil.rmtree(draft.folder / "checkpoints", ignore_errors=True)
    draft.counts.update(result.counts)
    draft.metrics.update(result.metrics)
    return result.weights


def _start_lora(trainable: Mapping[str, nn.Parameter], given: lora.LoraWeights, path: Path) -> None:
    """Copies the weights to start from into the fresh parameters."""
    values = given.state
    wrong = [
        name
        for name in sorted({*trainable, *values})
        if name not in values or name not in trainable or values[name].shape != trainable[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} has rank {given.rank} or layers that differ from what is to be trained, such as {wrong[0]}.",
            "Training can only start from weights of the same shape.",
            f"Set rank={given.rank}, or leave init_from out.",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(values[name])


def _start(path: Path | None, kind: str) -> dict[str, Input]:
    return {} if path is None else {"init_from": weights_input(path, kind)}


def _notes(
    config: Config, base: BaseModel, inputs: Mapping[str, Input], train_config: TrainConfig
) -> dict[str, object]:
    return {
        "base_model": inputs["base"].name,
        "base_model_fingerprint": inputs["base"].fingerprint,
        "beta_schedule": train_config.beta_schedule,
        "recipe_fingerprint": config.fingerprint(),
        "frames": train_config.frames,
    }
