"""A training that runs out of memory: one message, the checkpoint kept, and the same command resumes."""

from pathlib import Path

import pytest
import torch

from components.train.loop.trainer import train
from components.train.step import Task, store_frozen_in_bf16
from infra.errors import WorkError
from tests.components.conftest import DrawnClips
from tests.components.train.test_trainer import SHORT, Line, line_task


class Greedy(Line):
    """Runs out of memory in the forward pass of one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.calls, self.at = 0, at

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and z.device.type != "meta":
            self.calls += 1
            if self.calls == self.at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().forward(z)


def task_of(model: Line) -> Task:
    task = line_task()
    return Task("line", model, task.predictor, {"w": model.w}, task.text, 0.5, 3, (8, 8))


def test_the_message_says_what_was_asked_and_what_helps(clips: DrawnClips, tmp_path: Path) -> None:
    config = SHORT.replace(checkpoint_every_steps=1, held_out_clips=0)
    with pytest.raises(WorkError) as caught:
        train(config, task_of(Greedy(at=4)), clips, tmp_path)
    assert "Out of memory while training the line: batch_size=2, frames=3, latents of 8x8" in caught.value.found
    assert "GiB are free on cpu now. The last checkpoint is kept." in caught.value.meaning
    assert "train.activation_checkpointing=full" in caught.value.next_step
    assert "train.gradient_accumulation" in caught.value.next_step
    assert list((tmp_path / "checkpoints").glob("step-*/manifest.json"))

    resumed: list[int] = []
    weights = train(config, task_of(Line()), clips, tmp_path, lambda report: resumed.append(report.step)).weights
    assert resumed[0] > 1
    assert resumed[-1] == 4
    whole = train(config, task_of(Line()), clips, tmp_path / "whole").weights
    assert torch.equal(weights["w"], whole["w"])


def test_another_error_is_not_taken_for_it(clips: DrawnClips, tmp_path: Path) -> None:
    class Broken(Line):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            if z.device.type != "meta":
                raise RuntimeError("shapes differ")
            return super().forward(z)

    with pytest.raises(RuntimeError, match="shapes differ"):
        train(SHORT.replace(held_out_clips=0), task_of(Broken()), clips, tmp_path)


class Normed(torch.nn.Module):
    """A frozen convolution and norms, and one number that learns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.group = torch.nn.GroupNorm(4, 8)
        self.layer = torch.nn.LayerNorm(8)
        self.w = torch.nn.Parameter(torch.tensor(0.5))
        for norm in (self.group, self.layer):
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.group(self.conv(x))
        return self.layer(hidden.transpose(1, 3)) * self.w


def test_frozen_weights_in_bf16_change_nothing_under_autocast() -> None:
    """Norms keep their fp32; what autocast rounds at every use is rounded once."""
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    losses = []
    for stored in (False, True):
        model = Normed()
        if stored:
            task = Task("normed", model, lambda model: model, {"w": model.w}, lambda text: x, 1.0, 1, (8, 8))
            store_frozen_in_bf16(task)
            assert {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16} == {
                "conv.weight",
                "conv.bias",
            }
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(x).float().square().mean().item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
