"""Artifacts: folders `<root>/<kind>/<name>/` with their data and a `record.json` that is written last.

A stage reads folders and writes one folder. It is written as the sibling `.<name>.partial` and renamed when
complete, so a folder with a record is complete and one without is not an artifact.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from infra.artifacts.sealing import (
    DRAFT,
    RECORD,
    before_of,
    finish_replacing,
    is_disk_full,
    locked,
    partial_of,
    share,
    write_json,
)
from infra.config import Config
from infra.errors import UserError
from infra.hashing import sha256_json, sha256_path
from infra.logs import get_logger

SCHEMA_VERSION = 1
PACKAGES = (
    "animateflow", "torch", "diffusers", "transformers", "peft", "prefect", "ray",
    "decord", "pyarrow", "open-clip-torch", "great-expectations",
)  # fmt: skip
log = get_logger("infra")


@dataclass(frozen=True)
class Input:
    """An input of an artifact: another artifact, or another file or folder, identified by its SHA256."""

    kind: str
    name: str
    fingerprint: str


@dataclass(frozen=True)
class Artifact:
    """A finished artifact and its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.record["kind"])

    @property
    def name(self) -> str:
        return str(self.record["name"])

    @property
    def fingerprint(self) -> str:
        return str(self.record["fingerprint"])

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.record["config"])

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.record["metrics"])

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.record["counts"])

    def as_input(self) -> Input:
        return Input(self.kind, self.name, self.fingerprint)


@dataclass
class Draft:
    """An artifact being written. Put files in `folder`, figures in `counts` and `metrics`."""

    folder: Path
    resumed: bool
    inputs: dict[str, Input] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


def outside(path: Path, kind: str) -> Input:
    """An input that is not an artifact (a base model, a source table), by the SHA256 of its bytes."""
    return Input(kind, path.name, sha256_path(path))


def load(folder: Path, kind: str | None = None) -> Artifact:
    """The artifact in `folder`.

    Raises:
        UserError: no such folder, no record in it, or a record of another kind.
    """
    path = folder / RECORD
    if not path.is_file():
        what = "is unfinished, or not an artifact" if folder.is_dir() else "does not exist"
        raise UserError(
            f"{folder} {what}.",
            f"A finished {kind or 'artifact'} holds a {RECORD}, written last.",
            "Check the path, or run the command that makes it again.",
        )
    artifact = Artifact(folder, json.loads(path.read_text(encoding="utf-8")))
    if kind is not None and artifact.kind != kind:
        raise UserError(
            f"{folder} holds a {artifact.kind}, not a {kind}.",
            "The command was given a folder of another kind.",
            f"Name a {kind} folder.",
        )
    return artifact


def find(folder: Path, kind: str, config: Config, inputs: Mapping[str, Input]) -> Artifact | None:
    """The finished artifact of the same config and inputs; None if the folder does not exist or is empty.

    Raises:
        UserError: the folder holds something else; the message names every field that differs.
    """
    if (partial_of(folder) / RECORD).is_file():  # of a run that died between its record and its place
        with locked(folder):
            pass
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    artifact = load(folder, kind)
    if artifact.fingerprint == _fingerprint(kind, config, inputs):
        return artifact
    then, now = artifact.record["identity"], _identity(kind, config, inputs)
    raise UserError(
        f"{folder} was made from something else: {'; '.join(differences(then, now)) or 'schema version'}.",
        "An artifact is never overwritten by one of another config or other inputs.",
        f"Write to another --out, or remove {folder} to make it again.",
    )


@contextmanager
def draft(
    folder: Path, kind: str, config: Config, inputs: Mapping[str, Input], scratch: str | None = None
) -> Iterator[Draft]:
    """Opens the draft of an artifact; on a clean exit it is sealed with its record and renamed into place.

    On an error the draft stays. `scratch` names a folder in it from which a stopped run resumes, and that is removed
    once the record is written. While it holds a file, the same config and inputs find the draft again (`resumed` is
    True) and others are refused; else a draft starts from an empty folder, and a user's error leaves none.

    Raises:
        UserError: the place cannot be written, another run is writing it now, or a run of another config or other
            inputs was stopped there; the message names every field that differs.
    """
    folder = folder.absolute()
    now = {
        "identity": _identity(kind, config, inputs),
        "config": config.model_dump(mode="json"),
        "scratch": scratch,
    }
    started = time.monotonic()
    with locked(folder) as partial:

        def worth_keeping() -> bool:
            return scratch is not None and any(path.is_file() for path in (partial / scratch).rglob("*"))

        try:
            resumed = worth_keeping()
            if resumed:
                _check_resumes(folder, partial, now)
            else:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
            write_json(partial / DRAFT, now)
            work = Draft(partial, resumed, inputs=dict(inputs))
            yield work
            _seal(work, folder, kind, config, started)
        except Exception as error:
            if (isinstance(error, UserError) or is_disk_full(error)) and not worth_keeping():
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _check_resumes(folder: Path, partial: Path, now: dict[str, Any]) -> None:
    """Compares the config and inputs of a stopped run with those of this one; changed execution fields are only logged.

    Raises:
        UserError: they differ.
    """
    then: dict[str, Any] = json.loads((partial / DRAFT).read_text(encoding="utf-8"))
    if then.get("identity") != now["identity"]:
        raise UserError(
            f"A stopped run with another config or other inputs is at {folder}: "
            f"{'; '.join(differences(then.get('identity', {}), now['identity']))}.",
            "Its checkpoints belong to its own config and inputs.",
            f"Undo the change to resume it, write to another --out, or remove {partial} to start again.",
        )
    if changed := differences(then["config"], now["config"]):
        log.info("Resuming with other settings: %s.", "; ".join(changed))


@contextmanager
def revision(folder: Path, kind: str, config: Config) -> Iterator[Draft]:
    """Opens the next version of an artifact whose files record their own inputs.

    The draft's folder keeps what earlier runs left there, with any config. `inputs` are filled in before
    the end, when they are known. On a clean exit the draft is sealed and takes the place of the finished artifact,
    which stays complete until then.

    Raises:
        UserError: the place cannot be written, or another run is writing it now.
    """
    folder = folder.absolute()
    started = time.monotonic()
    with locked(folder) as partial:
        resumed = partial.is_dir()
        partial.mkdir(exist_ok=True)
        (partial / RECORD).unlink(missing_ok=True)  # of a run that was stopped before it took its place
        work = Draft(partial, resumed)
        yield work
        _seal(work, folder, kind, config, started)


def _seal(work: Draft, folder: Path, kind: str, config: Config, started: float) -> None:
    record = {
        "kind": kind,
        "name": folder.name,
        "schema_version": SCHEMA_VERSION,
        "fingerprint": _fingerprint(kind, config, work.inputs),
        "identity": _identity(kind, config, work.inputs),
        "config": config.model_dump(mode="json"),
        "inputs": {name: vars(given) for name, given in work.inputs.items()},
        "counts": work.counts,
        "metrics": work.metrics,
        "versions": package_versions(),
        "seconds": round(time.monotonic() - started, 3),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(work.folder / RECORD, record)
    share(work.folder)
    if folder.is_dir():
        os.replace(folder, before_of(folder))
    finish_replacing(folder, work.folder)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result; one that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def differences(then: Any, now: Any, path: str = "") -> list[str]:
    """Lines `a.b was 1 and is now 2` for every leaf in which two JSON values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*then, *(key for key in now if key not in then)]
        return [
            line
            for key in keys
            for line in differences(then.get(key), now.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if then == now else [f"{path} was {_short(then)} and is now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _identity(kind: str, config: Config, inputs: Mapping[str, Input]) -> dict[str, Any]:
    return {
        "config": config.identity(),
        "inputs": {name: given.fingerprint for name, given in sorted(inputs.items())},
    }


def _fingerprint(kind: str, config: Config, inputs: Mapping[str, Input]) -> str:
    return sha256_json([SCHEMA_VERSION, kind, type(config).__name__, _identity(kind, config, inputs)])
