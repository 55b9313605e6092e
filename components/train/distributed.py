"""This process among those that train together: which one it is, and what all of them agree on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from components.train.step import Place, Stepper
from infra.errors import UserError
from infra.runtime import pick_device


def place_of(device: str) -> Place:
    """Alone on `device` (`auto`, `cpu`, `cuda`), or where whoever started the processes has put this one."""
    if not _together():
        return Place(pick_device(device))
    group = torch.distributed
    on_gpu = group.get_backend() == "nccl"
    where = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Place(where, group.get_rank(), group.get_world_size())


def any_of_all(here: bool, place: Place) -> bool:
    """Whether it is so on any of the ranks; all of them must ask."""
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
            f"One worker would go on from step {most} and another from step {least}.",
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
    """Until every rank has come here."""
    if place.world_size > 1:
        torch.distributed.barrier()


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
