"""The Ray Data chain: shard tasks in, shards on the disk, their summaries out.

Ray brings the actors and hands them work; what is done with a video, and when a shard is finished, is ours. Ray's own
Parquet writer appends on a rerun, and its retries turn one video that crashes a decoder into a run that never ends.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from infra.errors import WorkError

if TYPE_CHECKING:
    from ray.exceptions import RayError

    from data_prep.worker import ShardTask, WorkerSettings


def encode_shards(tasks: list[ShardTask], settings: WorkerSettings, workers: int) -> Iterator[dict[str, Any]]:
    """Makes the shards on `workers` actors; yields the summary of each as it is done, in order.

    Without a task Ray is not started.

    Raises:
        AnimateflowError: what an actor refused, such as a VAE that cannot be read.
        WorkError: an actor failed or was killed. Finished shards stay.
    """
    if not tasks:
        return
    from infra.runtime import ray_session

    with ray_session():
        from ray.exceptions import RayError

        try:
            for summary in _dataset(tasks, settings, min(workers, len(tasks))).iter_rows():
                if failed := summary.get("error"):
                    raise pickle.loads(failed)
                yield summary
        except RayError as error:
            raise _explained(error) from None


def _dataset(tasks: list[ShardTask], settings: WorkerSettings, workers: int) -> Any:
    import ray

    from data_prep.worker import ShardWorker

    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 would have every option by name, and has no name for these two.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        items = [{"task": pickle.dumps(task)} for task in tasks]
        return ray.data.from_items(items, override_num_blocks=len(items)).map(
            cast("Any", ShardWorker),  # Ray's signature knows functions only
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.5,  # whole CPUs would starve Ray's own tasks on a machine of two
            num_gpus=_gpus_each(settings.device, workers),
            max_restarts=0,  # by default an actor that is killed, out of memory say, is restarted for ever
            max_task_retries=0,
        )


def _gpus_each(device: str, workers: int) -> float | None:
    import torch

    return min(1.0, torch.cuda.device_count() / workers) if device.startswith("cuda") else None


def _explained(error: RayError) -> WorkError:
    """What went wrong in the actor: the last line of its traceback, before Ray's own."""
    own = str(error).split("The above exception was the direct cause")[0]
    return WorkError(
        f"Encoding stopped: {own.strip().splitlines()[-1]}",
        "Finished shards are kept.",
        "Run the same command again to go on from there.",
    )
