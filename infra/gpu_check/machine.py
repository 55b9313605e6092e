"""What the numbers are of: card, driver, versions, revision."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from infra.hashing import sha256_file, sha256_json

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "transformers", "diffusers", "peft", "safetensors", "numpy", "torchvision")


def describe() -> dict[str, Any]:
    """JSON values; what is not there is null."""
    import torch

    card = None
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        card = {
            "name": found.name,
            "memory_gib": found.total_memory / (1 << 30),
            "multiprocessors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}",
            "driver": _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return {
        "card": card,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "revision": _told("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "source_sha256": _source(),
    }


def _source() -> str:
    """Over the code that was run, which may be a copy without its git folder."""
    files = sorted(path for part in ("components", "data_prep", "infra") for path in (ROOT / part).rglob("*.py"))
    return sha256_json([[path.relative_to(ROOT).as_posix(), sha256_file(path)] for path in files])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _told(*command: str) -> str | None:
    """The first line that a command prints; None where there is no such program, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None
