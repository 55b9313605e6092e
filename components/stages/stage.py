"""A training stage, and the one function that runs any of them.

A stage trains one kind of weights on a frozen base model and seals them as one artifact, in diffusers' format and in
the original one. The paper's three (sec. 4) are in `domain_adapter`, `motion_module` and `motion_lora`. A new stage
is a new subclass of `Stage` in a file of its own.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from components.base.caption_encoder import CaptionEncoder
from components.base.model import BaseModel, fingerprint_of, prediction_type_of
from components.diffusion.objective import Predict, image_predictor, video_predictor
from components.files.paths import weights_input
from components.motion.module import MotionModuleConfig
from components.stages.models import load_pipeline
from components.train.batch import BatchSource
from components.train.config import TrainConfig
from components.train.distributed import this_process
from components.train.loop.launch import InThisProcess, Job, Launch, OnStep, check_batch_size
from components.train.loop.trainer import TrainResult, train
from components.train.report.samples import drawer
from components.train.step import Task
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact, Draft, Input
from infra.artifacts.sealing import write_json
from infra.config import Config, execution
from infra.errors import UserError
from infra.logs import get_logger

if TYPE_CHECKING:
    from diffusers import MotionAdapter, StableDiffusionPipeline

FIGURES = "figures.json"
BEST = "best"
"""Folder in an artifact with the weights of the lowest held-out loss, where that was not at the end."""
IN_THIS_PROCESS = InThisProcess()
log = get_logger("components")
NO_WEIGHTS: Mapping[str, Path | None] = {}


@dataclass(frozen=True)
class Model:
    """What a stage trains, on the CPU."""

    unet: nn.Module
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Metadata of the weight file, in addition to the metadata of every stage."""
    adapter: MotionAdapter | None = None
    """The motion module in the UNet, if the stage saves it."""


class Stage(Config, ABC):
    """The config of a stage, and the functions in which stages differ.

    `train_stage` calls `load`, `set_trainable`, `initialise` (only with `init_from`), the trainer, and `save`.
    """

    kind: ClassVar[str]
    """Kind of the artifact."""
    title: ClassVar[str]
    """Name in the progress bar, plots and messages."""
    clips: ClassVar[bool]
    """Whether a sample is a clip of `train.frames` frames for the video model, or one frame for the image model."""
    required: ClassVar[tuple[str, ...]] = ()
    """Weights that must be given, by their input names in the record: the kind with underscores."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Weights that may be given. A `domain_adapter` is folded into the base model at scale 1 (paper sec. 4.4)."""

    train: TrainConfig = TrainConfig()
    """How it is trained."""
    init_from: Path | None = execution(None)
    """Weights to start from; their content, not their path, is part of the identity."""

    @abstractmethod
    def load(self, pipeline: StableDiffusionPipeline, weights: Mapping[str, Path]) -> Model:
        """The model to train, from the base model and the other weights by input name."""

    @abstractmethod
    def set_trainable(self, unet: nn.Module) -> dict[str, nn.Parameter]:
        """Freezes the UNet except for what this stage trains, which it may add first (a LoRA); returns the trainable
        parameters by their names in the weight file. It reads no files: a plan calls it on the meta device."""

    def initialise(self, trainable: Mapping[str, nn.Parameter], init_from: Path) -> None:
        """Copies the weights of `init_from` into `trainable`. Does nothing if `load` has already read them."""

    @abstractmethod
    def save(self, folder: Path, model: Model, weights: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
        """Writes the trained weights and their metadata into the artifact's folder.

        Raises:
            WorkError: a file does not read back as it was written.
        """

    @property
    def new_module(self) -> MotionModuleConfig | None:
        """The shape of the motion module that this stage trains, if it trains one."""
        return None

    @property
    def predictor(self) -> Callable[[nn.Module], Predict]:
        """How the model is called on a batch."""
        return video_predictor if self.clips else image_predictor

    @property
    def frames(self) -> int:
        """Frames of one sample."""
        return self.train.frames if self.clips else 1

    def task(
        self,
        pipeline: StableDiffusionPipeline,
        unet: nn.Module,
        trainable: dict[str, nn.Parameter],
        latent_size: tuple[int, int],
    ) -> Task:
        """The input of the trainer."""
        prediction = prediction_type_of(pipeline)
        return Task(
            title=self.title,
            unet=unet,
            predictor=self.predictor,
            trainable=trainable,
            text=CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, this_process(self.train.device).device),
            latent_scale=pipeline.vae.config.scaling_factor,
            frames=self.frames,
            latent_size=latent_size,
            prediction=prediction,
            draw=drawer(pipeline, unet, self.train.beta_schedule, prediction),
        )


def train_stage(
    stage: Stage,
    base: BaseModel,
    cache: BatchSource,
    cache_input: Input,
    out: Path,
    weights: Mapping[str, Path | None] = NO_WEIGHTS,
    on_step: OnStep = None,
    launch: Launch = IN_THIS_PROCESS,
) -> Artifact:
    """Trains a stage and seals its artifact in `out`; a finished one is returned at once.

    `weights` are the other weights that it needs or may use, by input name (`domain_adapter`, `motion_module`).

    Raises:
        UserError: the cache was encoded by another VAE, weights are missing, of another kind or do not fit the base
            model, the window is longer than the motion module's, or the workers cannot share a batch.
        TrainingStoppedError: Ctrl-C or SIGTERM; the same call resumes from there.
    """
    check_batch_size(stage.train.batch_size, launch)
    given = _given(stage, weights)
    inputs = {"base": fingerprint_of(base), "cache": cache_input, **_weight_inputs(stage, given)}
    if done := artifacts.find(out, stage.kind, stage, inputs):
        return done
    with artifacts.draft(out, stage.kind, stage, inputs, scratch="checkpoints") as draft:
        work = partial(_train, stage, base, cache, given, inputs, draft.folder)
        launch(Job(stage.title, draft.folder, stage.train.device, work), on_step)
        _read_figures(draft)
    return artifacts.load(out, stage.kind)


def _given(stage: Stage, weights: Mapping[str, Path | None]) -> dict[str, Path]:
    """
    Raises:
        UserError: weights that the stage needs are not given.
    """
    given = {name: path for name, path in weights.items() if path is not None}
    assert given.keys() <= {*stage.required, *stage.optional}, f"{stage.kind} does not take all of {list(given)}"
    for name in stage.required:
        if name not in given:
            what = name.replace("_", " ")
            raise UserError(f"No {what} is given.", f"The {stage.title} is trained on a {what}.", f"Give a {what}.")
    return given


def _weight_inputs(stage: Stage, weights: Mapping[str, Path]) -> dict[str, Input]:
    """
    Raises:
        UserError: nothing is at a path, or an artifact of another kind.
    """
    found = {} if stage.init_from is None else {"init_from": weights_input(stage.init_from, stage.kind)}
    for name in (*stage.required, *stage.optional):
        if name in weights:
            found[name] = weights_input(weights[name], name.replace("_", "-"))
    return found


def _train(
    stage: Stage,
    base: BaseModel,
    cache: BatchSource,
    weights: Mapping[str, Path],
    inputs: Mapping[str, Input],
    folder: Path,
    on_step: OnStep,
) -> None:
    """Trains in this process, which may be one of several workers; rank 0 writes into the draft's folder."""
    pipeline = load_pipeline(base, cache, weights.get("domain_adapter"))
    model = stage.load(pipeline, weights)
    trainable = stage.set_trainable(model.unet)
    if stage.init_from is not None:
        stage.initialise(trainable, stage.init_from)
    task = stage.task(pipeline, model.unet, trainable, cache.latent_size)
    result = train(stage.train, task, cache, folder, on_step)
    process = this_process(stage.train.device)
    if process.rank == 0:
        _write_figures(folder, result, process.world_size)
        metadata = {**model.metadata, **_metadata(stage, task, inputs)}
        stage.save(folder, model, result.weights, metadata)
        if result.best is not None:
            stage.save(folder / BEST, model, result.best, metadata)
            log.info(
                "The held-out loss was lowest at step %d of %d; the weights of that step are in %s/.",
                result.metrics["best_step"], stage.train.steps, BEST,
            )  # fmt: skip


def _metadata(stage: Stage, task: Task, inputs: Mapping[str, Input]) -> dict[str, object]:
    """Metadata of every stage's weight file."""
    return {
        "base_model": inputs["base"].name,
        "base_model_fingerprint": inputs["base"].fingerprint,
        "beta_schedule": stage.train.beta_schedule,
        "prediction_type": task.prediction,
        "recipe_fingerprint": stage.fingerprint(),
        "frames": stage.train.frames,
    }


def _write_figures(folder: Path, result: TrainResult, workers: int) -> None:
    """For `_read_figures`, in a file because the training may run in another process."""
    figures = {"counts": result.counts, "metrics": {**result.metrics, "workers": workers}}
    write_json(folder / FIGURES, figures)


def _read_figures(draft: Draft) -> None:
    figures = json.loads((draft.folder / FIGURES).read_text(encoding="utf-8"))
    draft.counts.update(figures["counts"])
    draft.metrics.update(figures["metrics"])
    (draft.folder / FIGURES).unlink()
