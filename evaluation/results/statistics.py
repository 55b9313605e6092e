"""Summaries of score rows: means and 95 % bootstrap intervals over prompts.

Frames of a clip and seeds of a prompt are not independent samples, prompts are: seeds are averaged first, then prompts
are resampled. Two methods are compared on the prompts and seeds that both have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
SUMMARISED = (
    "text_alignment", "text_alignment_content", "domain_similarity", "reference_ceiling",
    "smoothness_consecutive", "smoothness_pairs",
    "dynamic_degree", "object_motion", "flow_median", "frame_difference", "flicker", "duplicate_ratio",
    "object_velocity_x", "object_velocity_y", "zoom_rate", "pan_rate", "tilt_rate", "roll_rate",
)  # fmt: skip

Row = Mapping[str, Any]
Interval = dict[str, float | int | None]


def summarise(rows: Sequence[Row], seed: int = 0) -> list[dict[str, Any]]:
    """One entry per (model, method) in the rows' order: counts of samples, failed and static ones, and for each score
    `mean`, `low`, `high` (95 %, None for a single prompt) and `prompts`.

    `difference` holds the same for the method minus the model's first method, on what both have.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["model"], row["method"]].append(row)
    first = dict(reversed(groups))
    out = []
    for (model, method), members in groups.items():
        baseline = groups[model, first[model]]
        out.append(
            {
                "model": model,
                "method": method,
                "samples": len(members),
                "failed": sum(row["reason"] is not None for row in members),
                "static": sum(bool(row["static"]) for row in members),
                "scores": {name: _of(_values(members, name), seed) for name in SUMMARISED},
                "difference": {
                    name: _of(_differences(members, baseline, name), seed)
                    for name in SUMMARISED
                    if method != first[model]
                },
            }
        )
    return out


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of the values with its 95 % percentile bootstrap interval, None for fewer than two values."""
    if not values:
        return {"mean": None, "low": None, "high": None, "prompts": 0}
    array = np.asarray(values, dtype=np.float64)
    low = high = None
    if len(array) > 1:
        rng = np.random.default_rng(seed)
        means = array[rng.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
        low, high = (float(value) for value in np.quantile(means, [0.025, 0.975]))
    return {"mean": float(array.mean()), "low": low, "high": high, "prompts": len(array)}


def _of(pairs: Iterable[tuple[str, float]], seed: int) -> Interval:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, value in pairs:
        by_prompt[prompt].append(value)
    return bootstrap_mean([float(np.mean(values)) for values in by_prompt.values()], seed)


def _values(rows: Sequence[Row], name: str) -> list[tuple[str, float]]:
    return [(row["prompt"], row[name]) for row in rows if row[name] is not None]


def _differences(rows: Sequence[Row], baseline: Sequence[Row], name: str) -> list[tuple[str, float]]:
    there = {(row["prompt"], row["seed"]): row[name] for row in baseline if row[name] is not None}
    return [
        (row["prompt"], row[name] - there[row["prompt"], row["seed"]])
        for row in rows
        if row[name] is not None and (row["prompt"], row["seed"]) in there
    ]
