"""Which errors mean that there was no memory."""

import pytest
import torch

from infra.memory import is_out_of_memory, memory_of


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(12, "Cannot allocate memory"), False),
    ],
)
def test_an_error_is_recognised(error: Exception, expected: bool):
    assert is_out_of_memory(error) is expected


def test_the_error_of_the_cpu_is_recognised_as_torch_raises_it():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_memory_is_told_in_gib():
    assert memory_of(torch.device("cpu")).endswith("GiB are free on cpu")
