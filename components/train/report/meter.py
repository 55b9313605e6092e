"""Use of the device: model FLOPs utilisation against a measured matmul rate, peak memory against the prediction."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from components.train.estimate import GIB
from components.train.step import Stepper

MATMULS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution", "aten._scaled_dot_product")


class Meter:
    """Measures one training, from its first step on."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._device = stepper.process.device
        self._dtypes: set[torch.dtype] = set()
        self._rate: float | None = None
        self.predicted_gib = stepper.predicted.total / GIB
        reset_peak(self._device)

    def recording(self) -> AbstractContextManager[Any]:
        """Records the dtypes of the matrix products inside the block."""
        return _MatmulDtypes(self._dtypes)

    def mfu(self, samples_per_second: float) -> float | None:
        """Model FLOPs utilisation, 0..1: FLOPs of the step without recomputation, over those that large matrix products
        of the same dtype reach on this device. None if the matrix products have several dtypes."""
        if len(self._dtypes) != 1 or not self._stepper.flops_per_sample:
            return None
        if self._rate is None:
            self._rate = matmul_rate(self._device, next(iter(self._dtypes)))
        return samples_per_second * self._stepper.flops_per_sample / self._stepper.process.world_size / self._rate

    def peak_gib(self) -> float:
        """Peak memory of the device since the start."""
        return peak_gib(self._device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, the best of ten."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        product = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * len(product) ** 3 / best


class _MatmulDtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function).startswith(MATMULS):
            self._found.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def peak_gib(device: torch.device) -> float:
    """Peak memory since `reset_peak`: of tensors on CUDA, of the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return _peak_of_process() / GIB


def reset_peak(device: torch.device) -> None:
    """`peak_gib` counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the resident memory of now
    except OSError:  # not Linux, or not writable: the peak then counts from the start of the process
        return


def _peak_of_process() -> int:
    """Bytes."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)
