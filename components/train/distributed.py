"""Data-parallel training: rank and device of this process, and what all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from components.train.step import Process, Stepper
from infra.errors import UserError
from infra.runtime import pick_device


def this_process(device: str) -> Process:
    """Device, rank and world size of this process; without a process group, `device` and rank 0 of 1."""
    if not _is_distributed():
        return Process(pick_device(device))
    group = torch.distributed
    on_gpu = group.get_backend() == "nccl"
    own = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Process(own, group.get_rank(), group.get_world_size())


def any_rank(flag: bool, process: Process) -> bool:
    """Whether `flag` is set on any rank. Every rank must call it."""
    if process.world_size == 1:
        return flag
    flags = torch.tensor(float(flag), device=process.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return bool(flags)


def check_same_step(step: int, process: Process) -> None:
    """
    Raises:
        UserError: the ranks have found different checkpoints.
    """
    if process.world_size == 1:
        return
    steps = torch.tensor([step, -step], device=process.device)
    torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
    last, first = int(steps[0]), -int(steps[1])
    if last != first:
        raise UserError(
            f"One worker would resume from step {last} and another from step {first}.",
            "They see different checkpoints: their machines do not share the folder.",
            "Name an --out on a disk that all machines of the cluster share.",
        )


@contextmanager
def without_ddp(stepper: Stepper) -> Iterator[None]:
    """Inside the block the stepper calls the model without its DDP wrapper, which may wait for the other ranks."""
    wrapped = stepper.predict
    stepper.predict = stepper.task.predictor(stepper.task.unet)
    try:
        yield
    finally:
        stepper.predict = wrapped


def barrier(process: Process) -> None:
    """Returns when every rank has called it."""
    if process.world_size > 1:
        torch.distributed.barrier()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
