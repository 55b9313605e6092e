"""What fails for want of memory is no result: a row for now, memory freed, and tried again by the next run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from components.animate.animator import Animator
from evaluation.benchmark.benchmark import BenchmarkProgress, run_benchmark
from evaluation.benchmark.config import BenchmarkConfig
from evaluation.results.samples import read_scores
from infra.errors import TransientError
from tests.evaluation.benchmark.test_benchmark import config as config


def test_out_of_memory_is_a_failed_row_and_never_sealed(
    config: BenchmarkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config.replace(methods=config.methods[:2])
    frames, made = Animator.frames, []

    def run_out(self: Animator, asked: Any) -> Any:
        made.append(asked.seed)
        if self.models.motion_module is not None and asked.seed == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return frames(self, asked)

    seen: list[BenchmarkProgress] = []
    with monkeypatch.context() as patch:
        patch.setattr(Animator, "frames", run_out)
        with pytest.raises(
            TransientError, match=r"2 of 8 samples failed for want of memory or disk.*CUDA out of memory"
        ):
            run_benchmark(config, tmp_path / "scores", "cpu", seen.append)
    assert [bool(step.reason) for step in seen].count(True) == 2
    assert len(made) == 8, "the next samples were made"
    assert not (tmp_path / "scores").exists()

    again: list[int] = []

    def count(self: Animator, asked: Any) -> Any:
        again.append(asked.seed)
        return frames(self, asked)

    monkeypatch.setattr(Animator, "frames", count)
    artifact = run_benchmark(config, tmp_path / "scores", "cpu")
    assert again == [7, 7]
    rows = read_scores(artifact.folder / "scores.parquet")
    assert [row["reason"] for row in rows] == [None] * 8


def test_the_base_model_is_loaded_once_for_all_methods(
    config: BenchmarkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from components.animate import animator

    loaded: list[Path] = []
    load_base = animator.load_base
    monkeypatch.setattr(animator, "load_base", lambda base: (loaded.append(base.path), load_base(base))[1])
    run_benchmark(config.replace(prompts=config.prompts[:1], seeds=(0,)), tmp_path / "scores", "cpu")
    assert loaded == [config.models[0].base.path]
