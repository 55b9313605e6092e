"""What the machine is, and what its products and copies reach."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import torch

from components.train.report.meter import matmul_rate
from infra.gpu_check import machine as this_machine
from infra.gpu_check.context import Context
from infra.gpu_check.rows import Row

COPIES = 10


def machine(context: Context) -> Iterator[Row]:
    """Its details are the JSON's `machine`."""
    found = this_machine.describe()
    card = found["card"]
    said = f"torch {found['packages']['torch']}, CUDA {found['cuda']}"
    yield Row("machine", "CPU" if card is None else card["name"], note=said, details=found)


def rates(context: Context) -> Iterator[Row]:
    """Ceilings: bf16 products, and copies in the device's memory, counting bytes read and written."""
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        yield Row(f"matmul {name}", matmul_rate(context.device, dtype) / 1e12, "TFLOP/s")
    taken = torch.ones(int(context.sizes.matmul_gib * (1 << 30)), dtype=torch.uint8, device=context.device)
    target = torch.empty_like(taken)
    best = float("inf")
    for _ in range(COPIES):
        synchronize(context.device)
        began = time.perf_counter()
        target.copy_(taken)
        synchronize(context.device)
        best = min(best, time.perf_counter() - began)
    yield Row("copy", 2 * taken.numel() / best / 1e12, "TB/s")


def synchronize(device: torch.device) -> None:
    """Waits for the device's work; the CPU's is done when its call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free() -> None:
    """Gives back what no tensor holds any more, so that the next peak is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
