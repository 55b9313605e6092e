"""The benchmark: every model, method, prompt and seed, animated, then scored from the files; one table and one report.

The design is paired: every method gets the same prompts and seeds on every model. A sample that fails is a row with a
reason. An interrupted benchmark resumes at the next sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.clip.clip import ClipEncoder
from evaluation.benchmark.config import BenchmarkConfig
from evaluation.benchmark.generation import References, SharedAnimator, generate_and_score
from evaluation.report.report import ReportSection, write_report
from evaluation.results.overview import write_overview
from evaluation.results.samples import (
    METRIC_VERSION,
    Sample,
    save_row,
    saved_row,
    write_scores,
)
from evaluation.results.statistics import summarise
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact
from infra.errors import TransientError, WorkError
from infra.logs import progress

KIND = "benchmark"


@dataclass(frozen=True)
class BenchmarkProgress:
    """Reported after every sample: `done` of `total`, and the reason if it failed."""

    done: int
    total: int
    sample: Sample
    reason: str | None


def run_benchmark(
    config: BenchmarkConfig,
    out: Path,
    device: str = "auto",
    on_progress: Callable[[BenchmarkProgress], None] | None = None,
    sections: Sequence[ReportSection] = (),
) -> Artifact:
    """The artifact: `scores.parquet`, `report.html`, `overview.gif`, `animations/` and `references/`.

    `sections` are added to the report as they are and are no part of the artifact's identity.

    Raises:
        UserError: a model or weight file that is not there, or a CLIP model that cannot be loaded.
        WorkError: every sample failed; the message holds the first reason.
        TransientError: some failed for want of memory or disk; the same call tries them again.
    """
    config = config.replace(animation=config.animation.resolved(device))
    inputs = config.inputs()
    if done := artifacts.find(out, KIND, config, inputs):
        return done
    with artifacts.draft(out, KIND, config, inputs, scratch=".rows") as draft:
        encoder = ClipEncoder(config.clip, device)
        rows = _all_rows(config, draft.folder, encoder, device, on_progress)
        failed = [row["reason"] for row in rows if row["reason"] is not None]
        if len(failed) == len(rows):
            raise WorkError(
                f"All {len(rows)} samples of the benchmark failed.",
                f"The first: {failed[0]}",
                "Correct the cause, and run it again.",
            )
        write_scores(draft.folder / "scores.parquet", rows)
        draft.counts |= {
            "samples": len(rows),
            "failed": len(failed),
            "static": sum(bool(row["static"]) for row in rows),
        }
        draft.metrics |= {
            "metric_version": METRIC_VERSION,
            "clip": {"name": encoder.name, "sha256": encoder.sha256},
            "summary": summarise(rows),
        }
        write_overview(
            draft.folder,
            {entry.name: entry.title for entry in config.models},
            {method.name: method.title for method in config.methods},
            config.animation.fps,
        )
        record = {
            "fingerprint": config.fingerprint(),
            "inputs": {name: vars(given) for name, given in inputs.items()},
            "metrics": draft.metrics,
            "versions": artifacts.package_versions(),
        }
        write_report(draft.folder, config.model_dump(mode="json"), record, draft.folder / "report.html", sections)
    return artifacts.load(out, KIND)


def _all_rows(
    config: BenchmarkConfig,
    folder: Path,
    encoder: ClipEncoder,
    device: str,
    on_progress: Callable[[BenchmarkProgress], None] | None,
) -> list[dict[str, Any]]:
    """A row a sample. Rows of transient failures are not kept on disk.

    Raises:
        TransientError: samples failed for want of memory or disk; every other row is kept.
    """
    rows: list[dict[str, Any]] = []
    transient: list[str] = []
    total = len(config.models) * len(config.methods) * len(config.prompts) * len(config.seeds)
    with progress(total, "Benchmark", "clip") as bar:
        for entry in config.models:
            animator = SharedAnimator(device, config.animation.precision)
            references = References(
                config.animation, config.prompts, config.references, entry, folder, encoder, animator
            )
            for method in config.methods:
                models = method.models(entry)
                for sample in config.samples(entry, method):
                    row, again = saved_row(folder, sample, encoder), False
                    if row is None:
                        row, again = generate_and_score(config.animation, sample, models, references)
                    if again:
                        transient.append(str(row["reason"]))
                    else:
                        save_row(folder, sample, row)
                    rows.append(row)
                    bar.update()
                    if on_progress is not None:
                        on_progress(BenchmarkProgress(len(rows), total, sample, row["reason"]))
    if transient:
        raise TransientError(
            f"{len(transient)} of {total} samples failed for want of memory or disk.",
            f"The first: {transient[0]} They are no results; all others are kept.",
            "Free memory or disk, and run the same command again: it generates only these.",
        )
    return rows
