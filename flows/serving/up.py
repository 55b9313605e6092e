"""Prefect on one machine: server, work pool, deployments and a worker, started and stopped together.

All state (database, logs, the server's address) is in one folder, `.animateflow/` under the project root.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.artifacts.sealing import write_json
from infra.errors import UserError, WorkError
from infra.logs import get_logger
from infra.runtime import QUIET

PROJECT = Path(__file__).resolve().parents[2]
STATE = PROJECT / ".animateflow"
WORK_POOL = "animateflow"
START_SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 20.0
LOOPBACK = ("127.0.0.1", "localhost")

log = get_logger("up")


@dataclass(frozen=True)
class Running:
    """A running server and its worker."""

    url: str
    environment: dict[str, str]
    server: subprocess.Popen[bytes]
    worker: subprocess.Popen[bytes]

    @property
    def api(self) -> str:
        return f"{self.url}/api"

    def wait(self) -> None:
        """Blocks until the server or the worker exits.

        Raises:
            WorkError: one of them exited.
        """
        while True:
            for name, process in (("server", self.server), ("worker", self.worker)):
                if process.poll() is not None:
                    raise WorkError(
                        f"The Prefect {name} exited by itself (exit code {process.returncode}).",
                        "",
                        "Its last lines are in .animateflow/logs; then run `animateflow up` again.",
                    )
            time.sleep(0.5)


@contextmanager
def prefect_on_this_machine(port: int | None, state: Path) -> Iterator[Running]:
    """Server, work pool, deployments and worker, for the length of the `with` block.

    Raises:
        UserError: the port is in use, a server already runs on this state folder, or there is no prefect.yaml.
        WorkError: Prefect did not start.
    """
    if not (PROJECT / "prefect.yaml").is_file():
        raise UserError(
            f"There is no prefect.yaml in {PROJECT}.",
            "It describes the deployments, and an installed package does not contain it.",
            "Clone the project and run `make setup` in it.",
        )
    if address := running_server(state):
        raise UserError(f"Prefect is already running: {address}", "", "Use it, or stop it with Ctrl-C where it runs.")
    port = free_port(port)
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        **{name: os.environ.get(name, value) for name, value in QUIET.items()},
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        **without_proxy(os.environ),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_CLI_COLORS": "false",
        "PYTHONUNBUFFERED": "1",
    }
    (state / "logs").mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    address_file = state / "server.json"
    try:
        log.info("Starting the Prefect server on %s", url)
        server = _start("server", ["server", "start", "--host", "127.0.0.1", "--port", str(port)], environment, state)
        processes.append(server)
        _wait_until_healthy(f"{url}/api/health", server, state)
        log.info("Deploying the flows of prefect.yaml")
        if not _prefect("work-pool", "inspect", WORK_POOL, environment=environment, may_fail=True):
            _prefect("work-pool", "create", WORK_POOL, "--type", "process", environment=environment)
        _prefect("--no-prompt", "deploy", "--all", environment=environment)
        worker = _start("worker", ["worker", "start", "--pool", WORK_POOL, "--limit", "1"], environment, state)
        processes.append(worker)
        write_json(address_file, {"url": url, "pid": os.getpid()})
        yield Running(url, environment, server, worker)
    finally:
        address_file.unlink(missing_ok=True)
        for process in reversed(processes):  # the worker first: it reports the state of its runs to the server
            stop(process)


def running_server(state: Path = STATE) -> str | None:
    """The URL of the server that `animateflow up` started here, or None if none answers."""
    try:
        url = str(json.loads((state / "server.json").read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError):
        return None
    return url if is_healthy(f"{url}/api/health") else None


def api_address(state: Path) -> str:
    """PREFECT_API_URL if it is set, else the API URL of the server that `animateflow up` started.

    Raises:
        UserError: no server answers there.
    """
    if given := os.environ.get("PREFECT_API_URL"):
        if not is_healthy(f"{given.rstrip('/')}/health"):
            raise UserError(
                f"No Prefect server answers at PREFECT_API_URL={given}.", "", "Start it, or unset PREFECT_API_URL."
            )
        return given
    if url := running_server(state):
        return f"{url}/api"
    raise UserError(
        "No Prefect server is running here.",
        "Deployed flows are started through one.",
        "Run `animateflow up` in another terminal first.",
    )


def free_port(wanted: int | None) -> int:
    """The wanted port; if None, 4200 (Prefect's default) or any free one.

    Raises:
        UserError: the wanted port is in use.
    """
    for port in (wanted,) if wanted is not None else (4200, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"Port {wanted} is in use.", "Another program listens there.", "Choose another --port.")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings, with this machine added: a proxy cannot reach a server on another one's loopback."""
    given = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    hosts = ",".join(dict.fromkeys([*filter(None, given.split(",")), *LOOPBACK]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def on_this_machine(url: str) -> bool:
    """Whether a URL's host is this machine's loopback."""
    return urllib.parse.urlsplit(url).hostname in LOOPBACK


def is_healthy(url: str) -> bool:
    """Whether a server answers at this health URL, without a proxy where that is on this machine."""
    proxies = urllib.request.ProxyHandler({} if on_this_machine(url) else None)
    try:
        with urllib.request.build_opener(proxies).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a process and its descendants: SIGINT first, SIGKILL after STOP_SECONDS_MAX."""
    import psutil

    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for child in family:
        if child.is_running():
            child.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS_MAX)
    for child in alive:
        child.kill()


def _start(name: str, arguments: list[str], environment: dict[str, str], state: Path) -> subprocess.Popen[bytes]:
    """A Prefect process in its own session, so that Ctrl-C reaches only this process; its output goes to a file."""
    with (state / "logs" / f"{name}.log").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env=environment,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    """Linux: the kernel sends this child SIGTERM when its parent is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], state: Path) -> None:
    end = time.monotonic() + START_SECONDS_MAX
    while not is_healthy(url):
        if server.poll() is not None or time.monotonic() > end:
            tail = "\n".join((state / "logs/server.log").read_text(errors="replace").splitlines()[-10:])
            raise WorkError("The Prefect server did not start.", f"Its last lines:\n{tail}\n", "")
        time.sleep(0.3)


def _prefect(*arguments: str, environment: dict[str, str], may_fail: bool = False) -> bool:
    """Runs a command of Prefect's and returns whether it succeeded.

    Raises:
        WorkError: it failed, and may not.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and not may_fail:
        lines = (done.stdout + done.stderr).strip().splitlines()[-10:]
        raise WorkError(f"`prefect {' '.join(arguments)}` failed:", "\n".join(lines), "")
    return done.returncode == 0
