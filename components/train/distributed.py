"""Data-parallel training: rank and device of this process, and what all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from components.train.step import Place, Stepper
from infra.errors import UserError
from infra.runtime import pick_device


def place_of(device: str) -> Place:
    """Rank, world size and device of this process; alone on `device` without a process group."""
    if not _together():
        return Place(pick_device(device))
    group = torch.distributed
    on_gpu = group.get_backend() == "nccl"
    where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Place(where, group.get_rank(), group.get_world_size())


def any_of_all(here: bool, place: Place) -> bool:
    """Whether the flag is set on any rank. Every rank must call it."""
    if place.world_size == 1:
        return here
    flag = torch.tensor(float(here), device=place.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


def check_same(step: int, place: Place) -> None:
    """
    Raises:
        UserError: the ranks have found different checkpoints.
    """
    if place.world_size == 1:
        return
    extremes = torch.tensor([step, -step], device=place.device)
    torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX)
    most, least = int(extremes[0]), -int(extremes[1])
    if most != least:
        raise UserError(
            f"One worker would resume from step {most} and another from step {least}.",
            "They see different checkpoints: their machines do not share the folder.",
            "Name an --out on a disk that all machines of the cluster share.",
        )


@contextmanager
def alone(stepper: Stepper) -> Iterator[None]:
    """The stepper asks the model itself: wrapped for many ranks, it may have the others take part."""
    wrapped = stepper.predict
    stepper.predict = stepper.task.predictor(stepper.task.unet)
    try:
        yield
    finally:
        stepper.predict = wrapped


def wait_for_all(place: Place) -> None:
    """Returns when every rank has called it."""
    if place.world_size > 1:
        torch.distributed.barrier()


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
