"""What `make gpu-check` checks for correctness, one test a check: `pytest -m gpu` on a machine with a CUDA device."""

import pytest

from infra.gpu_check.checks import Check, checks
from infra.gpu_check.context import Context
from infra.gpu_check.parts.worker import function_of
from infra.gpu_check.sizes import FULL
from infra.runtime import pick_device

CORRECT = [check for check in checks(FULL) if check.part == "correct"]


@pytest.mark.gpu
@pytest.mark.parametrize("check", CORRECT, ids=lambda check: check.name)
def test_the_gpu_computes_what_the_cpu_does(check: Check):
    rows = list(function_of(check.run)(Context(pick_device("cuda"), FULL), **check.arguments))
    assert rows
    assert [row for row in rows if row.status != "ok"] == []
