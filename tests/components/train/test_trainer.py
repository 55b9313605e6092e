from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.base.model import BaseModel
from components.diffusion.objective import draw
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.stage import train_stage
from components.train.batch import ClipBatch
from components.train.config import TrainConfig, learning_rate_at
from components.train.loop import checkpoints
from components.train.loop.trainer import TrainingStoppedError, train
from components.train.report.log import StepReport
from components.train.step import Task
from infra.errors import UserError, WorkError
from tests.components.conftest import CACHE_INPUT, DrawnClips

SHORT = TrainConfig(
    steps=4, batch_size=2, frames=3, learning_rate=1e-2, held_out_clips=2, sample_every_steps=0, device="cpu"
)


class Line(torch.nn.Module):
    """A model of one number: predicts noise as w · z_t."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.w * z


def line_task() -> Task:
    model = Line()

    def text(captions: list[str]) -> torch.Tensor:
        return torch.zeros(len(captions), 1, 1)

    return Task("line", model, lambda model: lambda z, t, text: model(z), {"w": model.w}, text, 0.5, 3, (8, 8))


def test_one_step_is_adamw_on_the_epsilon_loss(clips: DrawnClips, tmp_path: Path) -> None:
    """The first step of AdamW moves by the learning rate against the gradient's sign, after weight decay."""
    config = SHORT.replace(steps=1, learning_rate=0.01, weight_decay=0.1)
    seen: list[StepReport] = []
    result = train(config, line_task(), clips, tmp_path, seen.append)
    assert result.weights["w"].item() == pytest.approx(0.2 - 0.01 * 0.1 * 0.2 + 0.01, abs=1e-6)

    batch = next(clips.batches(2, 3, 0))
    drawn = draw(range(2), batch.latents_BCFhw.shape[1:], seed=0)
    eps, t = drawn.eps_BCFhw, drawn.t_B
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000), 0)[t].view(-1, 1, 1, 1, 1)
    z_t = alpha_bar.sqrt() * 0.5 * batch.latents_BCFhw + (1 - alpha_bar).sqrt() * eps
    assert seen[0].loss == pytest.approx((0.2 * z_t - eps).square().mean().item(), rel=1e-5)


def test_learning_rate_by_hand() -> None:
    config = SHORT.replace(steps=110, warmup_steps=10, learning_rate=1.0, learning_rate_decay="cosine")
    rates = [learning_rate_at(config, step) for step in (0, 4, 9, 10, 60, 109)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.5 * (1 + math.cos(math.pi * 0.99))])
    assert learning_rate_at(config.replace(learning_rate_decay="constant"), 109) == 1.0


LORA = MotionLoraTraining(train=SHORT.replace(ema_decay=0.9, caption_dropout=0.5), rank=2)


def lora_weights(
    base: BaseModel, clips: DrawnClips, module: Path, out: Path, on_step: Any = None
) -> dict[str, torch.Tensor]:
    train_stage(LORA, base, clips, CACHE_INPUT, out, {"motion_module": module}, on_step=on_step)
    return load_file(out / "motion_lora.safetensors")


@pytest.fixture(scope="module")
def unbroken(
    base: BaseModel, clips: DrawnClips, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Weights of a run that nothing stopped."""
    return lora_weights(base, clips, trained["motion-module"], tmp_path_factory.mktemp("unbroken") / "lora")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(
    number: signal.Signals,
    base: BaseModel,
    clips: DrawnClips,
    trained: dict[str, Path],
    unbroken: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    module = trained["motion-module"]

    def stop_after_two(report: StepReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(TrainingStoppedError, match=r"stopped at step 2 of 4.*Run the same command again") as caught:
        lora_weights(base, clips, module, tmp_path / "broken", stop_after_two)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "broken").exists()
    with pytest.raises(UserError, match="config.train.learning_rate was 0.01 and is now 0.5") as refused:
        faster = LORA.replace(train__learning_rate=0.5)
        train_stage(faster, base, clips, CACHE_INPUT, tmp_path / "broken", {"motion_module": module})
    assert refused.value.exit_code == 2
    steps: list[int] = []
    found = lora_weights(base, clips, module, tmp_path / "broken", lambda report: steps.append(report.step))
    assert steps == [3, 4]
    assert found.keys() == unbroken.keys()
    assert all(torch.equal(found[name], unbroken[name]) for name in unbroken)
    assert not (tmp_path / "broken" / "checkpoints").exists()
    assert signal.getsignal(number) is not None


def test_checkpoints_rotate_and_a_damaged_one_is_passed_over(
    clips: DrawnClips, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = SHORT.replace(steps=9, checkpoint_every_steps=2, keep_checkpoints=2)
    expected = train(config, line_task(), clips, tmp_path).weights["w"]
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000008"]
    newest = checkpoints.newest(folder)
    assert newest is not None
    assert newest.state["step"] == 8

    file = folder / "step-00000008" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    older = checkpoints.newest(folder)
    assert older is not None
    assert older.state["step"] == 6
    assert "step-00000008 is damaged" in caplog.text
    assert torch.equal(train(config, line_task(), clips, tmp_path).weights["w"], expected)

    (folder / "step-00000008" / "manifest.json").unlink()  # as of a run that died while writing
    unsealed = checkpoints.newest(folder)
    assert unsealed is not None
    assert unsealed.state["step"] == 6


def test_the_best_by_held_out_loss_outlives_the_newest(clips: DrawnClips, tmp_path: Path) -> None:
    """A learning rate that overshoots: the loss falls, then rises."""
    config = SHORT.replace(
        steps=12, learning_rate=0.2, checkpoint_every_steps=1, held_out_every_steps=1, keep_checkpoints=1
    )
    losses: dict[int, float] = {}
    train(config, line_task(), clips, tmp_path, lambda report: losses.update({report.step: report.held_out_loss or 9}))
    best = min(range(1, 12), key=losses.__getitem__)
    assert best < 11
    kept = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [best, 11]


class Poisoned(DrawnClips):
    """Every second batch holds NaN."""

    def batches(self, batch_size: int, frames: int, seed: int, start_step: int = 0, *rank: int) -> Iterator[ClipBatch]:
        for step, batch in enumerate(super().batches(batch_size, frames, seed, start_step, *rank), start_step):
            yield ClipBatch(batch.latents_BCFhw * (math.nan if step % 2 else 1), batch.captions, batch.clip_ids)


def test_non_finite_steps_are_skipped_counted_and_limited(tmp_path: Path) -> None:
    source = Poisoned("x")
    result = train(SHORT, line_task(), source, tmp_path / "a")
    assert result.counts["skipped_steps"] == 2
    assert math.isfinite(result.weights["w"].item())
    with pytest.raises(WorkError, match="2 steps had a loss or gradient that is not finite") as caught:
        train(SHORT.replace(skipped_steps_max=1), line_task(), source, tmp_path / "b")
    assert caught.value.exit_code == 1


def test_accumulated_batches_are_one_large_batch(clips: DrawnClips, tmp_path: Path) -> None:
    class Recorded(DrawnClips):
        starts: list[int] = []  # noqa: RUF012

        def batches(
            self, batch_size: int, frames: int, seed: int, start_step: int = 0, *rank: int
        ) -> Iterator[ClipBatch]:
            self.starts.append(start_step)
            return super().batches(batch_size, frames, seed, start_step, *rank)

    source = Recorded(clips.vae_sha256)
    config = SHORT.replace(steps=3, gradient_accumulation=2, checkpoint_every_steps=2)
    expected = train(config, line_task(), source, tmp_path).weights["w"]
    assert torch.equal(train(config, line_task(), source, tmp_path).weights["w"], expected)
    assert source.starts == [0, 4]


def test_the_average_is_what_is_saved(clips: DrawnClips, tmp_path: Path) -> None:
    """With decay d_k = min(decay, (1 + k) / (10 + k)), from the weights of an unaveraged run."""
    raw = [0.2]
    task = line_task()
    train(SHORT, task, clips, tmp_path / "raw", lambda report: raw.append(task.trainable["w"].item()))
    average = raw[0]
    for step, value in enumerate(raw[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    result = train(SHORT.replace(ema_decay=0.5), line_task(), clips, tmp_path / "ema")
    assert result.weights["w"].item() == pytest.approx(average, abs=1e-6)
    assert raw[-1] != pytest.approx(average, abs=1e-4)


def test_held_out_loss_is_by_band_and_always_of_the_same_noise(clips: DrawnClips, tmp_path: Path) -> None:
    config = SHORT.replace(held_out_every_steps=2, learning_rate=1e-12, log_every_steps=1)
    seen: list[StepReport] = []
    result = train(config, line_task(), clips, tmp_path, seen.append)
    bands = result.metrics["held_out_loss"]
    assert list(bands) == ["t 0-249", "t 250-499", "t 500-749", "t 750-999"]
    assert bands == pytest.approx(result.metrics["held_out_loss_before"], abs=1e-6)
    assert [report.held_out_loss is not None for report in seen] == [False, True, False, True]
    assert seen[-1].held_out_loss == pytest.approx(sum(bands.values()) / 4)
    assert (tmp_path / "loss.png").stat().st_size > 1000


def test_tensorboard_holds_the_scalars(clips: DrawnClips, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(SHORT.replace(log_every_steps=2), line_task(), clips, tmp_path)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4]
    assert [event.step for event in events.Scalars("held_out/mean")] == [0, 4]


def test_latents_of_another_vae_are_refused_before_the_first_step(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The cache was encoded by the VAE abc") as caught:
        config = DomainAdapterTraining(train=SHORT, rank=2)
        train_stage(config, base, DrawnClips("abc"), CACHE_INPUT, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert not (tmp_path / ".out.partial" / "logs").exists()


class CountsInNumbers(torch.optim.Optimizer):
    """Counts its steps in a plain number, and shares one table among all parameters, as bitsandbytes does."""

    table = torch.arange(4.0)

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"], state["qmap1"] = state.get("step", 0) + 1, self.table
                assert type(state["step"]) is int
                parameter -= group["lr"] / state["step"] * parameter.grad.sign()


def test_an_optimizer_whose_state_is_more_than_tensors_resumes(
    clips: DrawnClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "components.train.step._optimizer", lambda config, parameters: CountsInNumbers(parameters, config.learning_rate)
    )
    config = SHORT.replace(steps=6, checkpoint_every_steps=2)
    whole = train(config, line_task(), clips, tmp_path / "whole", lambda report: None)

    def stop(report: StepReport) -> None:
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingStoppedError):
        train(config, line_task(), clips, tmp_path / "parts", stop)
    again = train(config, line_task(), clips, tmp_path / "parts", lambda report: None)
    assert torch.equal(again.weights["w"], whole.weights["w"])


@pytest.mark.parametrize("seed", [2**32, 2**63 + 5])
def test_a_big_seed_trains(seed: int, base: BaseModel, clips: DrawnClips, tmp_path: Path) -> None:
    stage = DomainAdapterTraining(rank=2, train=SHORT.replace(steps=1, seed=seed))
    assert train_stage(stage, base, clips, CACHE_INPUT, tmp_path / "out").counts["steps"] == 1


def test_temporal_convolutions_train_at_the_defaults(base: BaseModel, clips: DrawnClips, tmp_path: Path) -> None:
    stage = MotionModuleTraining(preset="from-base", network="temporal-convolution", train=SHORT.replace(steps=1))
    assert stage.train.channels_last
    assert train_stage(stage, base, clips, CACHE_INPUT, tmp_path / "out").counts["steps"] == 1
