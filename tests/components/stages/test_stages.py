from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.base.model import BaseModel
from components.stages import stage
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.motion_lora import MotionLoraTraining
from components.stages.motion_module import MotionModuleTraining
from components.stages.stage import train_stage
from components.train.config import TrainConfig
from components.train.loop.trainer import train
from components.train.step import Task
from infra.artifacts import artifacts
from infra.errors import UserError
from tests.components.conftest import CACHE_INPUT, DrawnClips

TRAIN = TrainConfig(steps=2, batch_size=2, frames=4, learning_rate=1e-2, held_out_clips=2, sample_every_steps=0)
State = dict[str, torch.Tensor]


@pytest.fixture
def before_and_after(monkeypatch: pytest.MonkeyPatch) -> list[tuple[State, State]]:
    """The UNet's tensors when a stage hands it to the trainer, and when it gets it back."""
    seen: list[tuple[State, State]] = []

    def spied(config: TrainConfig, task: Task, *rest: Any) -> Any:
        before = {name: tensor.clone() for name, tensor in task.unet.state_dict().items()}
        result = train(config, task, *rest)
        seen.append((before, dict(task.unet.state_dict())))
        return result

    monkeypatch.setattr(stage, "train", spied)
    return seen


def changed(pair: tuple[State, State]) -> set[str]:
    before, after = pair
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def only(pair: tuple[State, State], belongs: Callable[[str], bool]) -> None:
    found = changed(pair)
    assert found == {name for name in pair[0] if belongs(name)}
    assert found


def test_each_stage_changes_its_own_parameters_and_nothing_else(
    base: BaseModel,
    clips: DrawnClips,
    trained: dict[str, Path],
    tmp_path: Path,
    before_and_after: list[tuple[State, State]],
) -> None:
    adapter = DomainAdapterTraining(train=TRAIN, rank=2)
    train_stage(adapter, base, clips, CACHE_INPUT, tmp_path / "da")
    module = MotionModuleTraining(train=TRAIN, preset="from-base")
    train_stage(module, base, clips, CACHE_INPUT, tmp_path / "mm", {"domain_adapter": trained["domain-adapter"]})
    lora = MotionLoraTraining(train=TRAIN, rank=2)
    train_stage(lora, base, clips, CACHE_INPUT, tmp_path / "ml", {"motion_module": trained["motion-module"]})

    one, two, three = before_and_after
    only(one, lambda name: ".lora_" in name and ".attentions." in name)
    only(two, lambda name: "motion_modules" in name and not name.endswith("pos_embed.pe"))
    only(three, lambda name: ".lora_" in name and "motion_modules" in name)


def test_stage_two_trains_on_the_adapter_at_scale_one(
    base: BaseModel,
    clips: DrawnClips,
    trained: dict[str, Path],
    pipeline: Any,
    tmp_path: Path,
    before_and_after: list[tuple[State, State]],
) -> None:
    from safetensors.torch import load_file

    config = MotionModuleTraining(train=TRAIN.replace(steps=1), preset="from-base")
    train_stage(config, base, clips, CACHE_INPUT, tmp_path / "mm", {"domain_adapter": trained["domain-adapter"]})
    layer = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v"
    file = load_file(trained["domain-adapter"] / "domain_adapter.safetensors")
    delta = file[f"unet.{layer}.lora_B.weight"] @ file[f"unet.{layer}.lora_A.weight"]
    expected = pipeline.unet.get_submodule(layer).weight + delta
    assert torch.allclose(before_and_after[0][1][f"{layer}.weight"], expected, atol=1e-6)
    assert delta.abs().max() > 1e-5


def test_the_artifacts_say_what_they_are(trained: dict[str, Path]) -> None:
    from components.convert.info import describe

    record = artifacts.load(trained["motion-module"], "motion-module").record
    assert set(record["inputs"]) == {"base", "cache", "domain_adapter"}
    assert record["counts"]["steps"] == 2
    assert set(record["metrics"]["held_out_loss"]) == {"t 0-249", "t 250-499", "t 500-749", "t 750-999"}
    for name in ("loss.png", "logs", "original/motion_module.safetensors", "config.json"):
        assert (trained["motion-module"] / name).exists()
    notes = describe(trained["motion-lora"])["metadata"]
    assert {
        "animateflow.stage": "motion-lora",
        "animateflow.preset": "from-base",
        "animateflow.group_norm": "per_frame",
        "animateflow.beta_schedule": "linear",
        "animateflow.rank": "4",
        "animateflow.alpha": "4",
        "animateflow.base_model": "tiny",
        "animateflow.max_frames": "32",
    }.items() <= notes.items()


def test_a_finished_stage_is_found_again(base: BaseModel, clips: DrawnClips, tmp_path: Path) -> None:
    config = DomainAdapterTraining(train=TRAIN.replace(steps=1), rank=2)
    first = train_stage(config, base, clips, CACHE_INPUT, tmp_path / "da")
    again = train_stage(
        config.replace(train__keep_checkpoints=5), base, DrawnClips("unread"), CACHE_INPUT, tmp_path / "da"
    )
    assert again == first
    with pytest.raises(UserError, match="rank was 2 and is now 3"):
        train_stage(config.replace(rank=3), base, clips, CACHE_INPUT, tmp_path / "da")


def test_training_starts_from_given_weights(
    base: BaseModel,
    clips: DrawnClips,
    trained: dict[str, Path],
    tmp_path: Path,
    before_and_after: list[tuple[State, State]],
) -> None:
    from safetensors.torch import load_file

    config = DomainAdapterTraining(train=TRAIN.replace(steps=1), rank=4, init_from=trained["domain-adapter"])
    made = train_stage(config, base, clips, CACHE_INPUT, tmp_path / "da")
    assert "init_from" in made.record["inputs"]
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B"
    file = load_file(trained["domain-adapter"] / "domain_adapter.safetensors")
    assert torch.equal(before_and_after[0][0][f"{name}.domain-adapter.weight"], file[f"unet.{name}.weight"])
    with pytest.raises(UserError, match="Set rank=4"):
        train_stage(config.replace(rank=8), base, clips, CACHE_INPUT, tmp_path / "other")


def test_a_window_longer_than_the_positions_is_refused(base: BaseModel, clips: DrawnClips, tmp_path: Path) -> None:
    config = MotionModuleTraining(train=TRAIN.replace(frames=9), preset="from-base", max_frames=8)
    with pytest.raises(UserError, match="9 frames and the motion module 8 positions"):
        train_stage(config, base, clips, CACHE_INPUT, tmp_path / "mm")


def test_the_record_is_json(trained: dict[str, Path]) -> None:
    for path in trained.values():
        json.loads((path / "record.json").read_text(), parse_constant=pytest.fail)


def test_the_weights_of_the_lowest_held_out_loss_are_exported_too(
    base: BaseModel, clips: DrawnClips, tmp_path: Path
) -> None:
    """Steps so large that the loss grows at some time; the weights of the best step are those of a training that ended
    there."""
    worse = TRAIN.replace(steps=6, learning_rate=4, held_out_every_steps=1, checkpoint_every_steps=1, ema_decay=0.5)
    made = train_stage(DomainAdapterTraining(train=worse, rank=2), base, clips, CACHE_INPUT, tmp_path / "out")
    best = made.metrics["best_step"]
    assert 1 <= best < 6
    final = made.metrics["held_out_loss"]
    assert made.metrics["best_held_out_loss"] < sum(final.values()) / len(final)
    shorter = DomainAdapterTraining(train=worse.replace(steps=best), rank=2)
    train_stage(shorter, base, clips, CACHE_INPUT, tmp_path / "shorter")
    files = [tmp_path / name / "domain_adapter.safetensors" for name in ("out/best", "shorter", "out")]
    found = [load_file(file) for file in files]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])
    assert (tmp_path / "out/best/original/domain_adapter.safetensors").is_file()


def test_where_the_end_is_the_best_there_is_no_other(trained: dict[str, Path]) -> None:
    assert not any((folder / "best").exists() for folder in trained.values())
