"""Several processes that train together, by Ray Train, connected by `torch.distributed`.

Ray Train starts the processes and reports when one of them dies. Retries are our own: Ray Train's count a user's
mistake as a failure of a machine, and never reset the count after a success.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import AnimateflowError, UserError, WorkError
from infra.logs import get_logger
from infra.runtime import quiet_environment, ray_session
from infra.workers import messages
from infra.workers.messages import Inbox

POLL_SECONDS = 0.2
CONNECT_TIMEOUT_SECONDS = 10
# Set unless the user has set them. Ray's defaults: a health check every 2 s; workers change into a folder of Ray's,
# which breaks relative paths; and the process group of a lost worker takes 30 s to shut down.
RAY_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
}
LOST_WORKER = re.compile(r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|process group", re.IGNORECASE)
log = get_logger("infra")


@dataclass(frozen=True)
class Listener:
    """Callbacks of the driver while the workers run."""

    on_message: Callable[[str], None] = lambda line: None
    """Gets each line that a worker sends."""
    stop_reason: Callable[[], str | None] = lambda: None
    """Polled: a reason asks the workers to stop."""
    progress: Callable[[], object] = lambda: None
    """A value that changes whenever a checkpoint is saved; failures are counted from the last change."""


def run_on_workers(
    work: Callable[[], None],
    folder: Path,
    workers: int,
    gpus: bool | None = None,
    listener: Listener | None = None,
    attempts: int = 3,
) -> None:
    """Runs `work` on every worker and waits for all of them; call it inside a `session`. Each worker has a GPU, or
    CPUs; with `gpus=None` GPUs if Ray has any.

    When a worker dies all workers are restarted, at most `attempts` times without progress in between. `work` should
    resume from its last checkpoint.

    Raises:
        AnimateflowError: raised by `work` on a worker.
        UserError: Ray has fewer CPUs or GPUs than workers.
        WorkError: workers keep dying.
    """
    listener, failures = listener or Listener(), 0
    folder = folder.absolute()
    inbox = Inbox(folder)
    on_gpus, cpus = _resources(workers, gpus)
    messages.open_mailbox(folder)
    try:
        while True:
            before = listener.progress()
            error = _wait_for(_trainer(work, folder, workers, on_gpus, cpus), folder, inbox, listener)
            if error is None:
                return
            failures = failures + 1 if listener.progress() == before else 1
            if cause := _error_to_raise(error):
                raise cause from (None if isinstance(cause, AnimateflowError) else error)
            if failures > attempts:
                raise _keeps_dying(failures, error)
            log.warning("A worker died (%s); all workers restart from the last checkpoint.", _last_line(error))
    finally:
        messages.remove_mailbox(folder)


@contextmanager
def session(workers: int, address: str | None = None) -> Iterator[None]:
    """Ray for `run_on_workers`: the running one, the cluster at `address`, or a local one with room for the workers.

    Raises:
        UserError: there is no cluster at `address`.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        try:
            _check_address(address)
            stack.enter_context(ray_session(address, max(workers, os.cpu_count() or 1), log_to_driver=False))
        except (OSError, ValueError) as error:
            raise UserError(
                f"No Ray cluster answers at {address!r}: {_last_line(error)}",
                "An address is HOST:PORT of the head node, or `auto` on a machine of the cluster.",
                "Start one with `ray start --head`, or leave --ray-address out to use this machine alone.",
            ) from None
        yield


def _check_address(address: str | None) -> None:
    """Connects to HOST:PORT once: Ray would retry for minutes.

    Raises:
        OSError: nothing listens there.
        ValueError: the port is not a number.
    """
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()


def _resources(workers: int, gpus: bool | None) -> tuple[bool, int]:
    """Whether each worker has a GPU, and its number of CPUs."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    on_gpus = resources.get("GPU", 0) >= 1 if gpus is None else gpus
    kind = "GPU" if on_gpus else "CPU"
    count = int(resources.get(kind, 0))
    if count < workers:
        raise UserError(
            f"{workers} workers need a {kind} each, and Ray has {count}.",
            "Workers that share one would only wait for each other.",
            f"Set --workers to {max(1, count)} or less, or name a larger cluster with --ray-address.",
        )
    if on_gpus:
        return True, 1
    # The most CPUs a worker that fit on the nodes; Ray sets OMP_NUM_THREADS to it.
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [int(node["Resources"].get("CPU", 0)) for node in found if node["Alive"]]
    room = [each for each in range(1, max(nodes) + 1) if sum(cpus // each for cpus in nodes) >= workers]
    return False, max(room, default=1)


def _trainer(work: Callable[[], None], folder: Path, workers: int, gpus: bool, cpus: int) -> Any:
    import ray.train
    from ray import cloudpickle
    from ray.train.torch import TorchConfig, TorchTrainer

    api: Any = ray.train  # its type stubs describe Ray Train's older API
    # As bytes: an error of unpickling (an input that is not on that machine) is then raised by the work itself.
    pickled: bytes = cloudpickle.dumps(work)  # type: ignore[no-untyped-call]
    here = Path.cwd()

    def on_worker() -> None:
        _on_worker(pickled, folder, here)

    return TorchTrainer(
        on_worker,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=api.ScalingConfig(
            num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})}
        ),
        run_config=api.RunConfig(
            name="ray",
            storage_path=str(messages.workers_folder(folder)),
            failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=api.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _on_worker(pickled: bytes, folder: Path, here: Path) -> None:
    import torch

    quiet_environment()
    rank = torch.distributed.get_rank()
    if here.is_dir():
        os.chdir(here)
    if not messages.workers_folder(folder).is_dir():
        raise UserError(
            f"Worker {rank} on {os.uname().nodename} does not see {folder}.",
            "All workers read checkpoints there, and one writes them.",
            "Name an --out on a disk that all machines of the cluster share.",
        )
    messages.log_to_driver(folder, logging.INFO if rank == 0 else logging.WARNING)
    pickle.loads(pickled)()


def _wait_for(trainer: Any, folder: Path, inbox: Inbox, listener: Listener) -> Exception | None:
    """Waits for the workers, delivers their messages and requests their stop; returns their error, or None.

    Ray Train runs in a thread: in the main thread it would replace the handler of Ctrl-C for good, to abort the run.
    """
    ended: list[Exception | None] = []

    def fit() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except Exception as error:  # noqa: BLE001  returned to the main thread
            ended.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        inbox.deliver(listener.on_message)
        if reason := listener.stop_reason():
            messages.request_stop(folder, reason)
    inbox.deliver(listener.on_message)
    return ended[0] if ended else RuntimeError("Ray Train ended without a result.")


def _error_to_raise(error: Exception) -> Exception | None:
    """The error that a restart would not help; None if a worker was lost."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    causes = [failures[rank] for rank in sorted(failures)]
    for cause in causes:
        if isinstance(cause, AnimateflowError):
            return cause
    not_started = getattr(error, "controller_failure", None)
    if not_started is not None:
        if _is_lost_worker(not_started) and "Timeout" not in type(not_started).__name__:
            return None
        return WorkError(
            f"Ray Train could not start the workers: {_last_line(error)}",
            "The cluster is busy, or its nodes come and go. The last checkpoint is kept.",
            "Look at the cluster with `ray status`, and run the same command again.",
        )
    if not causes:
        return error
    return next((cause for cause in causes if not _is_lost_worker(cause)), None)


def _is_lost_worker(cause: Exception) -> bool:
    """Whether a worker died, or lost its connection to another one."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    return isinstance(cause, (RayError, RayTrainError)) or (
        isinstance(cause, RuntimeError) and LOST_WORKER.search(str(cause)) is not None
    )


def _keeps_dying(failures: int, error: Exception) -> WorkError:
    return WorkError(
        f"Workers died {failures} times without progress: {_last_line(error)}",
        "A machine may lack memory, or something kills its processes. The last checkpoint is kept.",
        "Run the same command again to resume; with fewer --workers on a machine, each has more memory.",
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
