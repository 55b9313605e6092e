"""What a training shows of itself: samples, how far it is from its device's limits, and what its guards say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from components.animate.animator import Animator
from components.animate.config import AnimationConfig, AnimationModels
from components.base import caption_encoder
from components.base.caption_encoder import CaptionEncoder
from components.base.model import BaseModel, load_base
from components.convert.info import describe
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.stage import train_stage
from components.train import step as train_step
from components.train.batch import ClipBatch
from components.train.config import TrainConfig
from components.train.estimate import GIB, Memory, least_that_fits
from components.train.loop.trainer import train
from components.train.report.log import StepReport
from components.train.report.meter import Meter, matmul_rate
from components.train.step import Process, Stepper
from infra.artifacts import artifacts
from infra.errors import UserError, WorkError
from tests.components.conftest import CACHE_INPUT, CAPTIONS, DrawnClips
from tests.components.train.test_trainer import SHORT, line_task

LORA = MotionLoraTraining(train=SHORT.replace(log_every_steps=1), rank=2)


def lora_losses(config: MotionLoraTraining, base: BaseModel, clips: Any, module: Path, out: Path) -> list[StepReport]:
    seen: list[StepReport] = []
    train_stage(config, base, clips, CACHE_INPUT, out, {"motion_module": module}, on_step=seen.append)
    return seen


def test_samples_are_drawn_from_the_same_noise_and_change_nothing(
    base: BaseModel, clips: DrawnClips, trained: dict[str, Path], tmp_path: Path
) -> None:
    module = trained["motion-module"]
    plain = lora_losses(LORA, base, clips, module, tmp_path / "plain")
    drawing = LORA.replace(train__sample_every_steps=3)
    seen = lora_losses(drawing, base, clips, module, tmp_path / "drawn")
    assert [report.loss for report in seen] == [report.loss for report in plain]

    folder = tmp_path / "drawn" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}.gif" for step in (0, 3, 4)]
    with Image.open(folder / "step-00000000.gif") as page:
        assert getattr(page, "n_frames", 1) == SHORT.frames
        assert page.width > page.height, "a column for each of the two captions"
    assert [Path(name).name for report in seen for name in report.pictures] == [
        "loss.png", "step-00000000.gif", "step-00000003.gif", "loss.png", "step-00000004.gif",
    ]  # fmt: skip

    other = drawing.replace(train__sample_prompts=("a blue square", "a blue square"), train__steps=1)
    lora_losses(other.replace(train__sample_prompts=()), base, clips, module, tmp_path / "again")
    lora_losses(other, base, clips, module, tmp_path / "other")
    first, again, of_others = (
        (tmp_path / name / "samples" / "step-00000000.gif").read_bytes() for name in ("drawn", "again", "other")
    )
    assert first == again
    assert first != of_others


def test_the_image_model_draws_stills(base: BaseModel, clips: DrawnClips, tmp_path: Path) -> None:
    config = DomainAdapterTraining(train=SHORT.replace(sample_every_steps=4, ema_decay=0.9), rank=2)
    train_stage(config, base, clips, CACHE_INPUT, tmp_path / "out")
    stills = sorted((tmp_path / "out" / "samples").iterdir())
    assert [path.name for path in stills] == ["step-00000000.png", "step-00000004.png"]
    assert stills[0].read_bytes() != stills[1].read_bytes()


def test_a_run_is_held_against_its_device(
    base: BaseModel, clips: DrawnClips, trained: dict[str, Path], tmp_path: Path
) -> None:
    seen = lora_losses(LORA, base, clips, trained["motion-module"], tmp_path / "out")
    assert seen[-1].mfu is not None
    assert 0 < seen[-1].mfu < 1
    metrics = artifacts.load(tmp_path / "out").metrics
    assert 0 < metrics["model_flops_utilisation"] < 1
    assert metrics["peak_memory_gib"] == pytest.approx(metrics["predicted_memory_gib"], rel=0.4)


def stepper_of(base: BaseModel, clips: DrawnClips, config: TrainConfig) -> Stepper:
    pipeline, stage = load_base(base), DomainAdapterTraining(train=config, rank=2)
    task = stage.task(pipeline, pipeline.unet, stage.set_trainable(pipeline.unet), clips.latent_size)
    return Stepper(config, task, Process(torch.device("cpu")))


def test_utilisation_is_none_with_several_dtypes(base: BaseModel, clips: DrawnClips) -> None:
    meter = Meter(stepper_of(base, clips, SHORT))
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    with meter.recording():
        a @ b
    assert meter.mfu(1.0) is not None
    with meter.recording():
        a.double() @ b.double()
    assert meter.mfu(1.0) is None


def test_the_matmul_rate_is_that_of_a_large_product() -> None:
    assert 1e9 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14


@pytest.mark.parametrize(("room_gib", "expected"), [(100.0, "none"), (0.0, "full")])
def test_auto_recomputes_as_little_as_fits(
    room_gib: float, expected: str, base: BaseModel, clips: DrawnClips, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(train_step, "_room", lambda device: room_gib * GIB)
    config = SHORT.replace(activation_checkpointing="auto")
    assert stepper_of(base, clips, config).checkpointing == expected
    assert ("lower train.batch_size" in caplog.text) is (expected == "full")


def test_the_least_that_fits() -> None:
    needs: dict[Any, int] = {"none": 10, "resnets": 6, "full": 1}
    needed = {mode: Memory({"activations": size}) for mode, size in needs.items()}
    for room, expected in ((10, "none"), (9, "resnets"), (5, "full"), (0.5, None)):
        mode, found = least_that_fits(room, needed)
        assert (mode, found.total) == (expected, needs[expected or "full"])


class Embedded(DrawnClips):
    """Clips with the states of their captions, fp16 once, or with others'."""

    encoder: Any = None
    wrong = False

    def batches(self, batch_size: int, frames: int, seed: int, start_step: int = 0, *rank: int) -> Iterator[ClipBatch]:
        for batch in super().batches(batch_size, frames, seed, start_step, *rank):
            states = self.encoder(["something else"] * len(batch.captions) if self.wrong else batch.captions)
            yield replace(batch, caption_embeddings_BLD=states.half().float())


def test_cached_embeddings_stand_in_for_the_text_encoder(
    base: BaseModel, clips: DrawnClips, trained: dict[str, Path], tmp_path: Path
) -> None:
    config = LORA.replace(train__caption_dropout=0.5)
    expected = lora_losses(config, base, clips, trained["motion-module"], tmp_path / "plain")
    pipeline = load_base(base)
    source = Embedded(clips.vae_sha256)
    source.encoder = CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, torch.device("cpu"))
    found = lora_losses(config, base, source, trained["motion-module"], tmp_path / "cached")
    assert [report.loss for report in found] == pytest.approx([report.loss for report in expected], rel=1e-3)

    source.wrong = True
    with pytest.raises(UserError, match="differs from that of the base model's text encoder"):
        lora_losses(config, base, source, trained["motion-module"], tmp_path / "wrong")


def test_texts_are_encoded_once_and_let_go_of_in_turn(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = load_base(base)
    states = CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, torch.device("cpu"))
    encoded: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: encoded.append(len(args[0])), with_kwargs=True
    )
    first = states([CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]])
    assert torch.equal(first[0], first[2])
    states(CAPTIONS[:2])
    assert encoded == [1, 1]
    monkeypatch.setattr(caption_encoder, "CACHE_BYTES", 2 * first[0].nbytes)
    states(CAPTIONS[2:4])
    states([CAPTIONS[3], CAPTIONS[0]])
    assert len(encoded) == 5


def test_a_base_model_that_predicts_velocity_is_trained_and_animated_as_one(
    base_folder: Path, clips: DrawnClips, tmp_path: Path
) -> None:
    shutil.copytree(base_folder, tmp_path / "v")
    file = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    base = BaseModel(path=tmp_path / "v")
    seen: list[StepReport] = []
    config = MotionModuleTraining(train=SHORT, preset="from-base")
    train_stage(config, base, clips, CACHE_INPUT, tmp_path / "out", on_step=seen.append)
    of_noise: list[StepReport] = []
    train_stage(config, BaseModel(path=base_folder), clips, CACHE_INPUT, tmp_path / "noise", on_step=of_noise.append)
    assert seen[0].loss != pytest.approx(of_noise[0].loss, rel=1e-3)
    assert describe(tmp_path / "out")["metadata"]["modelspec.prediction_type"] == "v_prediction"
    animator = Animator(AnimationModels(base=base, motion_module=tmp_path / "out"), "cpu")
    shot = AnimationConfig(prompt="x", frames=2, steps=1, height=32, width=32)
    assert animator._scheduler("linear", shot).config.prediction_type == "v_prediction"
    assert animator.frames(shot).shape == (2, 32, 32, 3)


def test_parameters_that_do_not_change_end_the_training(clips: DrawnClips, tmp_path: Path) -> None:
    config = SHORT.replace(steps=20, learning_rate=1e-30, weight_decay=0.0)
    with pytest.raises(WorkError, match="After 10 steps no parameter of the line has changed"):
        train(config, line_task(), clips, tmp_path)


def test_a_loss_that_runs_away_is_named(clips: DrawnClips, tmp_path: Path) -> None:
    config = SHORT.replace(steps=20, learning_rate=3.0, log_every_steps=1)
    with pytest.raises(WorkError, match="The loss diverged"):
        train(config, line_task(), clips, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # dynamo looks at .grad of tensors that are no leaves
def test_compiled_blocks_give_the_same_losses(
    base: BaseModel, clips: DrawnClips, trained: dict[str, Path], tmp_path: Path
) -> None:
    """Inductor sums in another order."""
    plain = lora_losses(LORA, base, clips, trained["motion-module"], tmp_path / "plain")
    for mode in ("none", "full"):
        config = LORA.replace(train__compile=True, train__activation_checkpointing=mode)
        compiled = lora_losses(config, base, clips, trained["motion-module"], tmp_path / mode)
        assert [report.loss for report in compiled] == pytest.approx([report.loss for report in plain], rel=1e-5)
