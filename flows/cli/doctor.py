"""The checks of `animateflow doctor`: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from flows.serving.up import PROJECT, running_server
from infra.errors import UserError

PREFECT_PORT = 4200
MEMORY_GIB_MIN = 4.0
DISK_GIB_MIN = 5.0


@dataclass(frozen=True)
class Finding:
    """The result of one check. A `note` is worth knowing; something does not work while a thing is `missing`."""

    state: Literal["ok", "note", "missing"]
    what: str
    found: str
    advice: str = ""

    def line(self) -> str:
        mark = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}[self.state]
        return f"{mark}  {self.what:<14} {self.found}" + (f"\n{'':25}→ {self.advice}" if self.advice else "")


def examine() -> Iterator[Finding]:
    """Runs every check, the quick ones first."""
    for check in (python, packages, memory, disk, weights, prefect_server, device, decoding, ray_start):
        yield run_check(check)


def run_check(check: Callable[[], Finding]) -> Finding:
    """A check that raises is a finding too: broken machines are what the doctor is for."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001
        return Finding(
            "missing", check.__name__.replace("_", " "), f"{type(error).__name__}: {error}", "Run `make setup`."
        )


def python() -> Finding:
    """3.11 to 3.13."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("ok", "python", f"{version}, {sys.executable}")
    return Finding("missing", "python", version, "Python 3.11, 3.12 or 3.13 is needed.")


def packages() -> Finding:
    """Installed versions against requirements.lock."""
    lock = PROJECT / "requirements.lock"
    if not lock.is_file():
        return Finding("note", "packages", "no requirements.lock here to compare with")
    pinned: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        pinned.setdefault(name, set()).add(version)
    ours = {canonical(dist.name): dist.version for dist in metadata.distributions() if dist.name}
    other = sorted(f"{name} {ours[name]}" for name in pinned if name in ours and ours[name] not in pinned[name])
    lacking = sorted(name for name in ("torch", "diffusers", "prefect", "ray", "decord", "pyarrow") if name not in ours)
    if lacking:
        return Finding("missing", "packages", f"not installed: {', '.join(lacking)}", "Run `make setup`.")
    if other:
        return Finding(
            "note", "packages", f"not as locked: {', '.join(other[:5])}", "Run `make setup` for the tested versions."
        )
    return Finding("ok", "packages", "as in requirements.lock")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def memory() -> Finding:
    """Free memory."""
    import psutil

    free = psutil.virtual_memory().available / 2**30
    found = f"{free:.1f} GiB free of {psutil.virtual_memory().total / 2**30:.1f}, {os.cpu_count()} cores"
    if free < MEMORY_GIB_MIN:
        return Finding("note", "memory", found, f"The demo needs {MEMORY_GIB_MIN:.0f} GiB: close other programs.")
    return Finding("ok", "memory", found)


def disk() -> Finding:
    """Free space under the working directory, and whether it can be written."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if not os.access(Path.cwd(), os.W_OK):
        return Finding("note", "disk", f"{Path.cwd()} cannot be written", "Work in another folder, or name --out.")
    if free < DISK_GIB_MIN:
        return Finding("note", "disk", f"{free:.1f} GiB free", "Latents of 10,000 clips at 256 px take about 3 GiB.")
    return Finding("ok", "disk", f"{free:.1f} GiB free here")


def weights() -> Finding:
    """The shipped pocket weights against their checksums."""
    from infra.pocket.build import WEIGHTS, check_weights

    try:
        check_weights()
    except UserError as error:
        return Finding("missing", "pocket weights", f"{error.found} {error.meaning}", error.next_step)
    return Finding("ok", "pocket weights", f"{WEIGHTS}, checksums right")


def prefect_server() -> Finding:
    """Prefect's version, and whether its port is free."""
    version = metadata.version("prefect")
    if address := running_server():
        return Finding("ok", "prefect", f"{version}, running at {address}")
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", PREFECT_PORT)) == 0
    if taken:
        return Finding(
            "note", "prefect", f"{version}; port {PREFECT_PORT} is taken", "`animateflow up` will take another port."
        )
    return Finding("ok", "prefect", f"{version}, not running; port {PREFECT_PORT} is free")


def device() -> Finding:
    """The accelerator."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return Finding(
            "ok", "device", f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        )
    return Finding(
        "note", "device", f"no CUDA device, torch {torch.__version__}", "The pocket recipe runs here; sd15 needs a GPU."
    )


def decoding() -> Finding:
    """Draws a clip, encodes it as H.264 and decodes it again, with the codecs inside the packages."""
    import decord

    from infra.pocket.clips import CLIP_FPS, random_scenes, render
    from infra.video import write_mp4

    frames = render(next(random_scenes(1, seed=0)), 8, 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(path, frames, CLIP_FPS)
        seen = len(decord.VideoReader(str(path), num_threads=1))
    if seen != len(frames):
        return Finding("missing", "video", f"wrote {len(frames)} frames and read {seen}", "Run `make setup`.")
    return Finding(
        "ok", "video", f"H.264 written and read (decord {metadata.version('decord')}, av {metadata.version('av')})"
    )


def ray_start() -> Finding:
    """Whether Ray starts here."""
    from infra.runtime import ray_session

    with ray_session(cpus=1):
        return Finding("ok", "ray", f"{metadata.version('ray')} starts")
