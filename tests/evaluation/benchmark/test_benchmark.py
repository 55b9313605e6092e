"""A whole benchmark with real parts: diffusers, open_clip, H.264, a browser; only the weights are random and small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from components.animate.animator import Animator
from components.animate.config import AnimationConfig
from components.base.model import BaseModel
from components.clip.clip import ClipEncoder
from components.clip.config import ClipModel
from evaluation.benchmark.benchmark import BenchmarkProgress, run_benchmark
from evaluation.benchmark.config import BenchmarkConfig, BenchmarkMethod
from evaluation.metrics.motion import measure_motion
from evaluation.registry.registry import RegistryEntry
from evaluation.report.report import Picture, ReportSection, report_of
from evaluation.results.samples import SCHEMA, read_scores
from infra.artifacts.artifacts import Artifact
from infra.errors import UserError, WorkError
from infra.video import read_mp4
from tests.evaluation.browser import facts_of

PROMPTS = ("a red square moving left on grass", "a <b>blue</b> circle on sand")


@pytest.fixture(scope="module")
def config(image_model: Path, motion_modules: dict[str, Path], clip_folder: Path) -> BenchmarkConfig:
    return BenchmarkConfig(
        models=(
            RegistryEntry(
                name="tiny", title="Tiny <i>model</i>", base=BaseModel(path=image_model), trigger="drawn", licence="CC0"
            ),
        ),
        methods=(
            BenchmarkMethod(name="image-model", title="Image model alone"),
            BenchmarkMethod(name="module", title="Fresh module", motion_module=motion_modules["eight"]),
            BenchmarkMethod(name="too-short", title="Two positions", motion_module=motion_modules["two"]),
        ),
        prompts=PROMPTS,
        seeds=(0, 7),
        animation=AnimationConfig(prompt="", frames=4, steps=1, guidance_scale=1.0),
        clip=ClipModel(name=f"local-dir:{clip_folder}"),
        references=2,
    )


@pytest.fixture(scope="module")
def benchmark(config: BenchmarkConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, list[Any]]:
    seen: list[BenchmarkProgress] = []
    return run_benchmark(config, tmp_path_factory.mktemp("out") / "benchmark", "cpu", seen.append), seen


def test_every_sample_is_a_row(config: BenchmarkConfig, benchmark: tuple[Artifact, list[Any]]):
    artifact, seen = benchmark
    rows = read_scores(artifact.folder / "scores.parquet")
    assert list(rows[0]) == SCHEMA.names
    assert len(rows) == 3 * 2 * 2
    per_method = {
        method.name: [(row["prompt"], row["seed"]) for row in rows if row["method"] == method.name]
        for method in config.methods
    }
    assert len({str(pairs) for pairs in per_method.values()}) == 1, "methods are compared on the same prompts and seeds"
    assert all(row["full_prompt"] == f"drawn, {row['prompt']}" for row in rows)
    assert [step.done for step in seen] == list(range(1, 13))
    assert {step.total for step in seen} == {12}
    assert not list(artifact.folder.glob(".*"))


def test_failures_are_rows_with_a_reason(benchmark: tuple[Artifact, list[Any]]):
    artifact, seen = benchmark
    rows = read_scores(artifact.folder / "scores.parquet")
    failed = [row for row in rows if row["reason"]]
    assert {row["method"] for row in failed} == {"too-short"}
    assert all("2 positions" in row["reason"] and row["text_alignment"] is None for row in failed)
    assert artifact.counts == {"samples": 12, "failed": 4, "static": sum(bool(row["static"]) for row in rows)}
    assert [step.reason is not None for step in seen] == [bool(row["reason"]) for row in rows]


def test_scores_are_those_of_the_files(config: BenchmarkConfig, benchmark: tuple[Artifact, list[Any]]):
    """An outsider with the mp4, the PNG references and the encoder gets the same numbers."""
    folder = benchmark[0].folder
    encoder = ClipEncoder(config.clip, "cpu")
    row = next(row for row in read_scores(folder / "scores.parquet") if row["method"] == "module" and row["seed"] == 7)
    frames = read_mp4(folder / row["file"])
    assert frames.shape == (4, 64, 64, 3)
    assert (row["frames"], row["height"], row["width"], row["fps"]) == (4, 64, 64, 8)
    pictures = sorted((folder / "references" / "tiny" / "0000").glob("*.png"))
    assert len(pictures) == 2
    references = encoder.encode_images(np.stack([np.asarray(Image.open(path)) for path in pictures]))
    embedded = encoder.encode_images(frames)
    assert row["text_alignment"] == pytest.approx(
        100 * (embedded @ encoder.encode_text(f"drawn, {PROMPTS[0]}")).mean(), abs=1e-3
    )
    assert row["text_alignment_content"] == pytest.approx(
        100 * (embedded @ encoder.encode_text(PROMPTS[0])).mean(), abs=1e-3
    )
    assert row["domain_similarity"] == pytest.approx(100 * (embedded @ references.T).mean(), abs=1e-3)
    assert row["reference_ceiling"] == pytest.approx(100 * references[0] @ references[1], abs=1e-3)
    assert row["dynamic_degree"] == measure_motion(frames, 8).dynamic_degree
    assert (row["clip_model"], row["clip_sha256"]) == ("tiny-clip", encoder.sha256)


def test_references_share_no_noise_with_animations(benchmark: tuple[Artifact, list[Any]]):
    folder = benchmark[0].folder
    reference = np.asarray(Image.open(folder / "references" / "tiny" / "0000" / "000.png"), dtype=float)
    first = read_mp4(folder / "animations" / "tiny" / "image-model" / "0000.mp4")[0]
    assert np.abs(reference - first).mean() > 10


def test_the_summary_has_smoothness_beside_motion(benchmark: tuple[Artifact, list[Any]]):
    summary = benchmark[0].metrics["summary"]
    assert [one["method"] for one in summary] == ["image-model", "module", "too-short"]
    assert [one["failed"] for one in summary] == [0, 0, 4]
    score = summary[1]["scores"]
    assert score["smoothness_consecutive"]["prompts"] == score["dynamic_degree"]["prompts"] == 2
    assert score["text_alignment"]["low"] <= score["text_alignment"]["mean"] <= score["text_alignment"]["high"]
    assert set(summary[1]["difference"]) == set(score)


def test_the_same_again_is_found_and_another_is_refused(config: BenchmarkConfig, benchmark: tuple[Artifact, list[Any]]):
    artifact = benchmark[0]
    assert run_benchmark(config, artifact.folder, "cpu").record == artifact.record
    with pytest.raises(UserError, match="references was 2 and is now 3"):
        run_benchmark(config.replace(references=3), artifact.folder, "cpu")


def test_an_interrupted_benchmark_goes_on_where_it_stopped(
    config: BenchmarkConfig, benchmark: tuple[Artifact, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(step: BenchmarkProgress) -> None:
        if step.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(config, tmp_path / "b", "cpu", stop)
    made = []
    frames = Animator.frames
    monkeypatch.setattr(
        Animator, "frames", lambda self, animation: made.append(animation.seed) or frames(self, animation)
    )
    resumed = run_benchmark(config, tmp_path / "b", "cpu")
    assert len(made) == 12 - 3
    expected = read_scores(benchmark[0].folder / "scores.parquet")
    for got, row in zip(read_scores(resumed.folder / "scores.parquet"), expected, strict=True):
        assert got == row


def test_a_benchmark_without_one_score_is_no_artifact(config: BenchmarkConfig, tmp_path: Path):
    broken = config.replace(methods=(config.methods[2],), prompts=PROMPTS[:1], seeds=(0,))
    with pytest.raises(WorkError, match="2 positions"):
        run_benchmark(broken, tmp_path / "b", "cpu")
    assert not (tmp_path / "b").exists()


def test_missing_weights_are_named_before_any_work(config: BenchmarkConfig, tmp_path: Path):
    method = BenchmarkMethod(name="gone", title="Gone", motion_module=Path("/nowhere/module"))
    with pytest.raises(UserError, match="'gone': /nowhere/module does not exist"):
        run_benchmark(config.replace(methods=(method,)), tmp_path / "b", "cpu")
    assert not list(tmp_path.iterdir())


def test_paths_are_not_identity(config: BenchmarkConfig, tmp_path: Path):
    assert "/" not in re.sub(r"https?://", "", str(config.identity()).replace(*PROMPTS[1:], "").replace("</", "<"))


@pytest.mark.parametrize(
    "changes", [{"seeds": (1, 1)}, {"seeds": (-1,)}, {"seeds": (10**9,)}, {"prompts": ()}, {"references": 1}]
)
def test_designs_that_compare_nothing_are_refused(config: BenchmarkConfig, changes: dict[str, Any]):
    with pytest.raises((ValidationError, UserError)):
        config.replace(**changes)


@pytest.mark.parametrize("width", [1280, 500])
def test_the_report_opens_in_a_browser(benchmark: tuple[Artifact, list[Any]], tmp_path: Path, width: int):
    facts = facts_of(benchmark[0].folder / "report.html", tmp_path, width)
    animations = [image for image in facts["images"] if image["alt"].startswith("Animation")]
    assert len(animations) == 8
    assert all(image["natural"] == 64 and image["shown"] >= 160 for image in animations)
    assert all(image["natural"] > 0 and image["alt"] for image in facts["images"])
    assert facts["requests"] == []
    assert facts["overflow"] == 0
    assert facts["svgs"] == 1
    assert facts["scripts"] == 1, "only the test's own"
    for shown in (*PROMPTS, "Tiny <i>model</i>", "seed 7", "2 positions", "tiny-clip", "4 failed"):
        assert shown in facts["text"]


def test_a_caller_adds_sections(benchmark: tuple[Artifact, list[Any]], tmp_path: Path):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "loss.png")
    section = ReportSection("Training", "First.\n\nSecond & last.", (Picture(tmp_path / "loss.png", "Loss curve"),))
    facts = facts_of(report_of(benchmark[0].folder, tmp_path / "run" / "report.html", [section]), tmp_path)
    assert {"alt": "Loss curve", "natural": 40} in [
        {"alt": image["alt"], "natural": image["natural"]} for image in facts["images"]
    ]
    assert "Second & last." in facts["text"]
    with pytest.raises(UserError, match="nothing.png"):
        report_of(
            benchmark[0].folder, tmp_path / "x.html", [ReportSection("T", "", (Picture(tmp_path / "nothing.png", ""),))]
        )
