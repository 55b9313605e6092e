"""The benchmark's report: one HTML file with its animations inside, which needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.metrics.motion import STATIC_BELOW
from evaluation.report.plots import PlotSeries, colour_of, scatter_svg
from evaluation.results.samples import CRF, read_scores
from evaluation.results.statistics import summarise
from infra.artifacts.artifacts import Artifact, load
from infra.errors import UserError

ROWS_SHOWN = 12
"""Prompts and seeds shown for each model; all of them are in `animations/` and in the table."""
REFERENCES_SHOWN = 4
MIME = {
    ".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg", ".svg": "image/svg+xml",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture or animation to embed."""

    path: Path
    """A .png, .gif, .webp, .jpg or .svg file."""
    caption: str
    """Shown below it, and read to those who cannot see it."""


@dataclass(frozen=True)
class ReportSection:
    """A section that the caller adds: training curves, where the weights come from."""

    title: str
    text: str
    """Paragraphs, separated by empty lines; plain text."""
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Score:
    """A column of the table. `better` is 1 for more, -1 for less, 0 where neither is better."""

    name: str
    title: str
    unit: str
    better: int
    definition: str
    digits: int = 2


SCORES = (
    Score("text_alignment", "Text alignment", "100·cos", 1, "Mean CLIP cosine of each frame and the prompt."),
    Score(
        "domain_similarity", "Domain similarity", "100·cos", 1,
        "Mean CLIP cosine of each frame and each picture that the image model draws for the prompt by itself, from "
        "other seeds. The ceiling is what these pictures score against each other.",
    ),
    Score(
        "smoothness_consecutive", "Smoothness", "100·cos", 1,
        "Mean CLIP cosine of neighbouring frames. A frozen picture scores 100, so it means nothing without the motion.",
    ),
    Score(
        "smoothness_pairs", "Smoothness, all pairs", "100·cos", 1,
        "Mean CLIP cosine of all pairs of frames, the rule of Tune-A-Video.",
    ),
    Score(
        "dynamic_degree", "Dynamic degree", "widths/s", 0,
        f"Mean speed of the fastest 5 % of the pixels, from optical flow. Below {STATIC_BELOW} a clip is static.", 3,
    ),
    Score(
        "object_motion", "Object motion", "widths/s", 0,
        "The same after the camera's pan, tilt, zoom and roll, fitted to the flow, are taken out.", 3,
    ),
    Score(
        "flicker", "Flicker", "0..255", -1,
        "Mean grey difference of neighbouring frames after moving one along the flow: change that is not motion.",
    ),
)  # fmt: skip


def report_of(benchmark: Path, out: Path, sections: Sequence[ReportSection] = ()) -> Path:
    """Writes the report of a finished benchmark to another place, with sections of the caller's; returns `out`.

    Raises:
        UserError: no finished benchmark there, or a picture that cannot be embedded.
    """
    artifact: Artifact = load(benchmark, "benchmark")
    return write_report(benchmark, artifact.config, artifact.record, out, sections)


def write_report(
    folder: Path,
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    out: Path,
    sections: Sequence[ReportSection] = (),
) -> Path:
    """Writes the report of the benchmark in `folder` to the file `out` and returns it."""
    rows = read_scores(folder / "scores.parquet")
    # A title comes from a config or a prompt, and these from anyone: nothing is trusted to be HTML.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    methods = [{**method, "colour": colour_of(index)} for index, method in enumerate(config["methods"])]
    page = environment.get_template("report.html.j2").render(
        config=config,
        methods=methods,
        models=[_model(folder, entry, methods, rows, config) for entry in config["models"]],
        counts={
            "clips": len(rows),
            "failed": [row for row in rows if row["reason"] is not None],
            "static": sum(bool(row["static"]) for row in rows),
            "truncated": sum(bool(row["prompt_truncated"]) for row in rows),
        },
        scores=SCORES,
        sizes=sorted({f"{row['width']}×{row['height']}" for row in rows if row["reason"] is None}),
        crf=CRF,
        sections=[_section(section) for section in sections],
        record=record,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def _model(
    folder: Path,
    entry: Mapping[str, Any],
    methods: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the template shows of one model."""
    own = [row for row in rows if row["model"] == entry["name"]]
    summary = {one["method"]: one for one in summarise(own)}
    shown = sorted({row["sample"] for row in own})[:ROWS_SHOWN]
    cells = {(row["sample"], row["method"]): row for row in own}
    return {
        "entry": entry,
        "total_rows": len({row["sample"] for row in own}),
        "rows": [
            {
                "prompt": cells[index, methods[0]["name"]]["prompt"],
                "seed": cells[index, methods[0]["name"]]["seed"],
                "cells": [_cell(folder, cells[index, method["name"]]) for method in methods],
            }
            for index in shown
        ],
        "references": [
            {"prompt": prompt, "uris": _reference_uris(folder / "references" / entry["name"] / f"{index:04d}")}
            for index, prompt in enumerate(config["prompts"])
        ],
        "summary": [summary[method["name"]] for method in methods],
        "best": {score.name: _best(score, list(summary.values())) for score in SCORES},
        "plot": _plot(own, methods),
        "small": all(max(row["height"], row["width"]) <= 128 for row in own if row["reason"] is None),
    }


def _cell(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    animation = (folder / row["file"]).with_suffix(".webp")
    return {"row": row, "uri": _uri(animation) if row["reason"] is None else None}


def _reference_uris(folder: Path) -> list[str]:
    return [_uri(path) for path in sorted(folder.glob("*.png"))[:REFERENCES_SHOWN]]


def _best(score: Score, summary: Sequence[Mapping[str, Any]]) -> str | None:
    """The method with the best mean, of those with all their clips: a mean over other prompts is no comparison.

    One whose clips stand still cannot win at smoothness or flicker.
    """
    still_wins = score.name.startswith("smoothness") or score.name == "flicker"
    means = {
        one["method"]: score.better * one["scores"][score.name]["mean"]
        for one in summary
        if one["scores"][score.name]["mean"] is not None and not one["failed"] and not (still_wins and one["static"])
    }
    return max(means, key=lambda method: means[method]) if score.better and len(means) > 1 else None


def _plot(rows: Sequence[Mapping[str, Any]], methods: Sequence[Mapping[str, Any]]) -> Markup:
    series = []
    for method in methods:
        points = [
            (row["dynamic_degree"], row["smoothness_consecutive"])
            for row in rows
            if row["method"] == method["name"] and None not in (row["dynamic_degree"], row["smoothness_consecutive"])
        ]
        series.append(PlotSeries([x for x, _ in points], [y for _, y in points]))
    return Markup(scatter_svg(series, "dynamic degree, widths/s", "smoothness, 100·cos", STATIC_BELOW))


def _section(section: ReportSection) -> dict[str, Any]:
    return {
        "title": section.title,
        "paragraphs": [part.strip() for part in section.text.split("\n\n") if part.strip()],
        "pictures": [{"uri": _uri(picture.path), "caption": picture.caption} for picture in section.pictures],
    }


def _uri(path: Path) -> str:
    mime = MIME.get(path.suffix.lower())
    if mime is None or not path.is_file():
        raise UserError(
            f"{path} cannot be put into the report.", f"It takes files of {', '.join(MIME)}.", "Check the picture."
        )
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
