"""The Ray Data pipeline: shard tasks in, shards on disk, their summaries out; a single worker needs no Ray.

Ray starts the actors and schedules the tasks; our actor decides what happens to a video and when a shard is done.
Ray's own Parquet writer appends on a rerun, and its retries turn one video that crashes a decoder into a run that
never ends.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra import logs
from infra.errors import WorkError

if TYPE_CHECKING:
    from ray.exceptions import RayError

    from data_prep.config import CacheConfig
    from data_prep.encode.tasks import ShardTask
    from data_prep.encode.worker import WorkerSettings

RESTARTS_MAX = 3  # of the pipeline, after actors or their nodes died, without a shard in between
CPUS_EACH = 0.5  # whole CPUs would starve Ray's own tasks on a machine of two

log = logs.get_logger("data_prep")


def encode_shards(
    tasks: list[ShardTask], config: CacheConfig, vae: Path, text: Path | None
) -> Iterator[dict[str, Any]]:
    """Makes the shards on Ray actors; yields the summary of each as it is done, in order.

    If actors or their nodes die, the pipeline is started again with the missing shards. What one worker does is done in
    this process: starting Ray takes longer than a small shard.

    Raises:
        AnimateflowError: what an actor refused, such as a VAE that cannot be read.
        WorkError: actors keep failing or dying. Finished shards stay.
    """
    if not tasks:
        return
    from infra.runtime import ray_session

    if config.ray_address is None:
        settings, workers = _worker_settings(config, vae, text, *_own_processors())
        if min(workers, len(tasks)) == 1:
            yield from _in_this_process(tasks, settings)
            return
    with ray_session(config.ray_address):
        import ray
        from ray.exceptions import RayActorError, RayError

        found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        settings, workers = _worker_settings(
            config, vae, text, max(1, int(found.get("CPU", 1))), int(found.get("GPU", 0))
        )
        left, failures = tasks, 0
        while left:
            done = 0
            try:
                for summary in _dataset(left, settings, min(workers, len(left))).iter_rows():
                    if failed := summary.get("error"):
                        raise pickle.loads(failed)
                    done, failures = done + 1, 0
                    yield summary
                return
            except RayError as error:
                failures += 1
                if failures > RESTARTS_MAX or not _is_worker_death(error, RayActorError):
                    raise _as_work_error(error) from None
                left = left[done:]
                log.warning("A worker died; %d shards are left and are tried again.", len(left))


def _worker_settings(
    config: CacheConfig, vae: Path, text: Path | None, cpus: int, gpus: int
) -> tuple[WorkerSettings, int]:
    """Settings and number of the workers: one a GPU, the CPUs divided among their decoders, or one a CPU."""
    from data_prep.encode.worker import WorkerSettings

    device = config.device if config.device != "auto" else "cuda" if gpus else "cpu"
    on_gpu = device.startswith("cuda")
    workers = config.workers or (max(1, gpus) if on_gpu else cpus)
    decoders = config.decoders or (max(1, cpus // workers - 1) if on_gpu else 1)
    threads = max(1, cpus // workers)
    return WorkerSettings(config, vae, text, device, decoders, threads), workers


def _own_processors() -> tuple[int, int]:
    """CPUs that this process may use, and GPUs of this machine."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cpus, torch.cuda.device_count()


def _in_this_process(tasks: list[ShardTask], settings: WorkerSettings) -> Iterator[dict[str, Any]]:
    import torch

    from data_prep.encode.worker import ShardWorker

    threads = torch.get_num_threads()
    worker = ShardWorker(settings)
    try:
        for task in tasks:
            try:
                summary = worker({"task": pickle.dumps(task)})
            except Exception as error:
                raise _work_error(f"{type(error).__name__}: {error}") from error
            if failed := summary.get("error"):
                raise pickle.loads(failed)
            yield summary
    finally:
        worker.close()
        torch.set_num_threads(threads)


def _dataset(tasks: list[ShardTask], settings: WorkerSettings, workers: int) -> Any:
    import ray

    from data_prep.encode.worker import ShardWorker

    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 would have every option by name, and has no name for these.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        items = [{"task": pickle.dumps(task)} for task in tasks]
        return ray.data.from_items(items, override_num_blocks=len(items)).map(
            cast("Any", ShardWorker),  # Ray's signature knows functions only
            fn_constructor_args=(settings,),
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=CPUS_EACH,
            num_gpus=_gpus_each(settings.device, workers),
            scheduling_strategy="SPREAD",
            max_restarts=0,  # by default an actor that is killed, out of memory say, is restarted for ever
            max_task_retries=0,
        )


def _gpus_each(device: str, workers: int) -> float | None:
    if not device.startswith("cuda"):
        return None
    import ray

    gpus: float = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    return min(1.0, gpus / workers)


def _is_worker_death(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an actor or its node died; anything else would fail again."""
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or getattr(causes[-1], "cause", None):
        if cause in causes:
            break
        causes.append(cause)
    return any(isinstance(cause, kind) for cause in causes) or "died" in str(error)


def _as_work_error(error: RayError) -> WorkError:
    """What went wrong in the actor: the last line of its traceback, before Ray's own."""
    own = str(error).split("The above exception was the direct cause")[0]
    return _work_error(own.strip().splitlines()[-1])


def _work_error(what: str) -> WorkError:
    return WorkError(f"Encoding stopped: {what}", "Finished shards are kept.", "Run the same command again to resume.")
