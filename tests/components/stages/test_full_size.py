"""Each stage makes one bf16 step on a full-size SD 1.5 UNet; `pytest -m slow -s` shows the time and the peak memory.

A minute or two and up to 11 GiB a stage, each step in a process of its own. The counts are worked out by hand, from
the widths of the 16 spatial and the 20 temporal transformers (d channels: 320, 640 and 1280, on levels of 2 layers down
and 3 up).
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[3]

SPATIAL_WIDTHS = [*[320] * 5, *[640] * 5, *[1280] * 5, 1280]  # three levels down and up, and the middle
TEMPORAL_WIDTHS = [*[320] * 5, *[640] * 5, *[1280] * 10]  # four levels; v3 has none in the middle
TEXT_WIDTH = 768


@dataclass(frozen=True)
class Expected:
    parameters: int
    """In all, the trainable ones among them."""
    trainable: int
    tensors: int
    """That have a gradient."""
    frames: int


SD15, V3 = 859_520_964, 417_137_600
# 8 projections of each transformer from `inputs` to d channels: rank · (inputs + d) parameters in two matrices.
ADAPTER = sum(128 * (6 * (d + d) + 2 * (TEXT_WIDTH + d)) for d in SPATIAL_WIDTHS)  # attn2's keys and values read text
LORA = sum(64 * 8 * (d + d) for d in TEMPORAL_WIDTHS)
EXPECTED = {
    "domain-adapter": Expected(SD15 + ADAPTER, ADAPTER, tensors=16 * 8 * 2, frames=1),
    "motion-module": Expected(SD15 + V3, V3, tensors=20 * 26, frames=16),
    "motion-lora": Expected(SD15 + V3 + LORA, LORA, tensors=20 * 8 * 2, frames=16),
}


def one_step(stage: str, *options: str) -> dict[str, Any]:
    """The figures of one step in a process of its own, which also checks what has a gradient and what has changed."""
    command = [sys.executable, "-m", "tests.components.stages.full_size", stage, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{stage} ended with {done.returncode} (-9: killed, out of memory?)\n{done.stderr}"
    print(f"\n{done.stdout.strip()}")
    return dict(json.loads(done.stdout))


def test_the_counts_by_hand_are_the_released_ones() -> None:
    assert (ADAPTER, LORA) == (25_509_888, 18_022_400)


@pytest.mark.parametrize("stage", EXPECTED)
def test_one_full_size_bf16_step_gives_gradients_to_the_stage_and_to_nothing_else(stage: str) -> None:
    expected = EXPECTED[stage]
    plain, checkpointed = one_step(stage), one_step(stage, "--activation-checkpointing", "full")
    for found in (plain, checkpointed):
        assert found["trainable_parameters"] == expected.trainable
        assert found["parameters"] == expected.parameters
        assert found["tensors_with_gradient"] == expected.tensors
        assert found["frames"] == expected.frames
        assert found["peak_gib"] > found["model_gib"]
    assert checkpointed["loss"] == pytest.approx(plain["loss"], rel=1e-3)
