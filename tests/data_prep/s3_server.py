"""S3 servers on the loopback: SeaweedFS, a real store that checks signatures, and moto, which knows S3's answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "animateflow", "not-so-secret"
START_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """Where an S3 server answers."""

    name: str
    url: str

    def environment(self) -> dict[str, str]:
        """The variables by which boto, s3fs and pyarrow find it, and look nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def seaweedfs_program() -> str | None:
    """SeaweedFS is one program; its wheel puts it beside Python."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


@contextmanager
def seaweedfs(folder: Path) -> Iterator[Server]:
    """A SeaweedFS of one process with its data in `folder`; it listens on the loopback and calls nobody."""
    program = seaweedfs_program()
    assert program is not None, "the caller looks for it"
    roles = ("master", "volume", "filer", "s3")
    ports = dict(zip([f"{role}.port{kind}" for role in roles for kind in ("", ".grpc")], _free_ports(8), strict=True))
    identity = {"name": "us", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        *(program, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=20", "-volume.preStopSeconds=0"),
        *("-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-s3.localSocket=", "-filer.localSocket="),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (folder / "log").open("wb") as log:
        one_volume = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # at a time, not seven
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, start_new_session=True, env=os.environ | one_volume
        )
    try:
        url = f"http://127.0.0.1:{ports['s3.port']}"
        _wait(url, process, folder / "log")
        yield Server("seaweedfs", url)
    finally:
        process.send_signal(signal.SIGKILL)  # it keeps nothing that is wanted
        process.wait()
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@contextmanager
def moto() -> Iterator[Server]:
    """moto's S3 over HTTP, in a thread."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Server("moto", f"http://{host}:{port}")
    finally:
        server.stop()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/status", timeout=1).close()
        except urllib.error.HTTPError as error:
            error.close()
            return  # it speaks
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the S3 server did not start:\n{log.read_text()[-2000:]}")
