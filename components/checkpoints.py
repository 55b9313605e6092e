"""Checkpoints of a run: one folder a step, whole once its manifest is there, verified before an older one goes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.artifacts import write_json
from infra.hashing import sha256_file
from infra.logs import get_logger

MANIFEST = "manifest.json"
STATE = "state.json"

log = get_logger("components")


@dataclass(frozen=True)
class Checkpoint:
    """`tensors` by group (weights, ema, optimizer) and name; `state` is the trainer's JSON, `step` in it."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], keep: int
) -> None:
    """Writes `folder/step-<step>`, reads it back against its manifest, then removes all but the newest `keep`."""
    target = folder / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)  # an unsealed one of a run that died while writing
    target.mkdir(parents=True)
    for group, named in tensors.items():
        plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named.items()}
        save_file(plain, target / f"{group}.safetensors")
        _to_disk(target / f"{group}.safetensors")
    write_json(target / STATE, state)
    files = sorted(path for path in target.iterdir())
    write_json(target / MANIFEST, {"step": step, "files": {path.name: sha256_file(path) for path in files}})
    if not verify(target):
        raise OSError(f"the checkpoint {target} cannot be read back as it was written")
    for old in _sealed(folder)[:-keep]:
        shutil.rmtree(old)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; None when there is none. A damaged one is passed over with a warning."""
    for path in reversed(_sealed(folder)):
        if verify(path):
            groups = {file.stem: load_file(file) for file in path.glob("*.safetensors")}
            return Checkpoint(groups, json.loads((path / STATE).read_text(encoding="utf-8")))
        log.warning("The checkpoint %s is damaged; looking for an older one.", path.name)
    return None


def verify(path: Path) -> bool:
    """Whether every file of the manifest is there with its bytes."""
    try:
        files: dict[str, str] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(sha256_file(path / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _sealed(folder: Path) -> list[Path]:
    """Folders with a manifest, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()]
    return sorted(found)


def _to_disk(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
