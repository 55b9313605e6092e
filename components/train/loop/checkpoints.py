"""Checkpoints of a run: one folder a step, complete once it has a manifest, verified before an older one is removed."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.artifacts.sealing import write_json
from infra.errors import AnimateflowError, UserError
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


class Writer:
    """Writes checkpoints in a thread, one at a time, while training goes on."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread: threading.Thread | None = None
        self._error: AnimateflowError | None = None

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]) -> None:
        """Copies everything now, and writes the copy in the background.

        Raises:
            UserError: the checkpoint before this one could not be written.
        """
        self.wait()
        plain = {
            group: {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named.items()}
            for group, named in tensors.items()
        }
        copied = json.loads(json.dumps(state))

        def write() -> None:
            try:
                save(self._folder, step, plain, copied, self._keep)
            except AnimateflowError as error:
                self._error = error

        self._thread = threading.Thread(target=write, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the last one is on disk.

        Raises:
            UserError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], keep: int
) -> None:
    """Writes `folder/step-<step>`, reads it back against its manifest, then removes all but the newest `keep` and the
    one whose state has the lowest `held_out_loss`.

    Raises:
        UserError: the disk is full, or the folder cannot be written. Older checkpoints stay.
    """
    target = folder / f"step-{step:08d}"
    try:
        shutil.rmtree(target, ignore_errors=True)  # an incomplete one of a run that died while writing
        target.mkdir(parents=True)
        for group, named in tensors.items():
            save_file(dict(named), target / f"{group}.safetensors")
            _fsync(target / f"{group}.safetensors")
        write_json(target / STATE, state)
        files = sorted(path for path in target.iterdir())
        write_json(target / MANIFEST, {"step": step, "files": {path.name: sha256_file(path) for path in files}})
        _fsync(folder)
        if not verify(target):
            raise OSError("it does not read back as it was written")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UserError(
            f"The checkpoint {target} cannot be written: {getattr(error, 'strerror', None) or error}.",
            "The one before it is kept.",
            "Free some space, and run the same command again.",
        ) from None
    complete = _complete(folder)
    losses = {path: _held_out_loss(path) for path in complete}
    best = min(
        (path for path in complete if losses[path] is not None), key=lambda path: losses[path] or 0.0, default=None
    )
    for old in complete[:-keep]:
        if old != best:
            shutil.rmtree(old)


def best(folder: Path, below: float | None) -> tuple[int, float, dict[str, Tensor]] | None:
    """Of the checkpoint with the lowest held-out loss: its step, that loss, and the weights that a training saves
    (their EMA, if there is one). None if that loss is not `below`, or none was measured."""
    measured = [(_held_out_loss(path), path) for path in _complete(folder)]
    for loss, path in sorted((loss, path) for loss, path in measured if loss is not None):
        if below is not None and loss < below and verify(path):
            averaged = path / "ema.safetensors"
            weights = load_file(averaged if averaged.is_file() else path / "weights.safetensors")
            return int(path.name.removeprefix("step-")), loss, weights
    return None


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies; None when there is none. Damaged and incomplete ones are skipped
    with a warning."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if re.fullmatch(r"step-\d+", path.name) and not (path / MANIFEST).is_file():
                log.warning("The checkpoint %s is incomplete and is skipped.", path.name)
    for path in reversed(_complete(folder)):
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


def _held_out_loss(path: Path) -> float | None:
    try:
        loss = json.loads((path / STATE).read_text(encoding="utf-8")).get("held_out_loss")
    except (OSError, ValueError):
        return None
    return float(loss) if loss is not None else None


def _complete(folder: Path) -> list[Path]:
    """Folders with a manifest, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()]
    return sorted(found)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
