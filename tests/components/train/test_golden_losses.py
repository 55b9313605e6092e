from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.components.train.golden import FILE, TRAIN, losses


def test_the_first_twenty_losses_are_the_committed_ones(tmp_path: Path) -> None:
    """Other CPUs sum in another order: with AVX2 or SSE instead of AVX-512, and with one thread or two, the losses were
    within 3e-7 of their size; 1e-5 is allowed."""
    expected, found = json.loads(FILE.read_text(encoding="utf-8")), losses(tmp_path)
    assert list(found) == list(expected)
    for stage, values in expected.items():
        assert len(values) == TRAIN.steps
        assert found[stage] == pytest.approx(values, rel=1e-5), stage
