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
    """Of one training; it begins with its first step."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._device = stepper.place.device
        self._dtypes: set[torch.dtype] = set()
        self._rate: float | None = None
        self.predicted_gib = stepper.predicted.total / GIB
        forget_peak(self._device)

    def watching(self) -> AbstractContextManager[Any]:
        """Notes the types that the matrix products of the block are computed in."""
        return _MatmulDtypes(self._dtypes)

    def mfu(self, samples_per_second: float) -> float | None:
        """Model FLOPs utilisation: what the step must compute, recomputation apart, of what large matrix products of
        the same type reach on this device. None where the products are not all of one type."""
        if len(self._dtypes) != 1 or not self._stepper.flops_per_sample:
            return None
        if self._rate is None:
            self._rate = matmul_rate(self._device, next(iter(self._dtypes)))
        return samples_per_second * self._stepper.flops_per_sample / self._stepper.place.world_size / self._rate

    def peak_gib(self) -> float:
        """Of the device since this was made."""
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
    """Since `forget_peak`: what tensors took on CUDA, the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GIB
    return _peak_of_process() / GIB


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
    except OSError:  # another system, or not ours to write: the peak is then of the whole life of the process
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
