"""Out of memory: recognised, freed, and told in words."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
SAID_BY_TORCH = (
    "can't allocate memory",  # the CPU's allocator on Linux
    "not enough memory",  # on Windows and macOS
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or this machine had no memory left: torch's error on an accelerator, and those of a CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID_BY_TORCH)


def free_memory() -> None:
    """Gives what nothing uses any more back to the device. Call it outside the `except` block: the traceback of an
    error holds the tensors of its frames."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_of(device: torch.device) -> str:
    """Such as `3.2 of 79.1 GiB are free on cuda:0`."""
    import psutil
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        found = psutil.virtual_memory()
        free, total = found.available, found.total
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free on {device}"
