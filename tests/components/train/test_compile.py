"""Compiled blocks: held-out clips and samples of other sizes are computed without compiling them anew."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.base.model import BaseModel
from components.stages.domain_adapter import DomainAdapterTraining
from components.stages.stage import train_stage
from components.train.config import TrainConfig
from tests.components.conftest import CACHE_INPUT, DrawnClips


@pytest.mark.filterwarnings("default")  # dynamo looks at .grad of tensors that are no leaves
def test_only_training_steps_are_compiled(
    base: BaseModel, clips: DrawnClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[int] = []

    def count(graph: Any, inputs: list[torch.Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **options: compile_module(module, backend=count, **options)
    )
    counts, losses = [], []
    for held_out in (0, 3):  # three clips are a batch of two and one of one
        torch._dynamo.reset()
        graphs.clear()
        train = TrainConfig(
            steps=2, batch_size=2, held_out_clips=held_out, sample_every_steps=held_out, compile=True,
            sample_prompts=("a red circle",), device="cpu",
        )  # fmt: skip
        stage = DomainAdapterTraining(rank=2, train=train)
        made = train_stage(stage, base, clips, CACHE_INPUT, tmp_path / str(held_out))
        counts.append(len(graphs))
        losses.append(made.metrics["loss"])
    torch._dynamo.reset()
    assert counts[0] == counts[1] > 0
    assert losses[0] == losses[1]
