"""Summaries against values worked out by hand and against scipy's bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats

from evaluation.results.samples import SCHEMA
from evaluation.results.statistics import bootstrap_mean, summarise


def row(method: str, prompt: str, seed: int, value: float | None, **changes: Any) -> dict[str, Any]:
    empty = dict.fromkeys(SCHEMA.names)
    return empty | {
        "model": "m", "method": method, "prompt": prompt, "seed": seed, "text_alignment": value,
        "static": False, "reason": None,
    } | changes  # fmt: skip


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(3).normal(30, 4, 12)
    got = bootstrap_mean(list(values))
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert got["mean"] == pytest.approx(values.mean())
    assert got["low"] == pytest.approx(reference.low, abs=0.15)
    assert got["high"] == pytest.approx(reference.high, abs=0.15)
    assert got == bootstrap_mean(list(values))


def test_one_prompt_gives_a_mean_and_no_interval():
    assert bootstrap_mean([5.0]) == {"mean": 5.0, "low": None, "high": None, "prompts": 1}
    assert bootstrap_mean([])["mean"] is None


def test_seeds_are_averaged_before_prompts():
    rows = [row("a", "p", 0, 10.0), row("a", "p", 1, 20.0), row("a", "q", 0, 40.0)]
    [got] = summarise(rows)
    assert got["scores"]["text_alignment"]["mean"] == pytest.approx((15 + 40) / 2)
    assert got["scores"]["text_alignment"]["prompts"] == 2
    assert got["difference"] == {}


def test_differences_are_paired_and_failures_counted():
    rows = [
        row("a", "p", 0, 10.0), row("a", "q", 0, 30.0),
        row("b", "p", 0, 11.0, static=True), row("b", "q", 0, None, reason="OSError: no"),
    ]  # fmt: skip
    first, second = summarise(rows)
    assert (second["samples"], second["failed"], second["static"]) == (2, 1, 1)
    assert second["difference"]["text_alignment"] == {"mean": 1.0, "low": None, "high": None, "prompts": 1}
    assert (first["samples"], first["failed"]) == (2, 0)
