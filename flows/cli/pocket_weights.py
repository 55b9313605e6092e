"""Trains all that ships under `infra/pocket/weights/`: the models, then the three stages on drawn clips."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from infra.artifacts.artifacts import Artifact
from infra.artifacts.sealing import RECORD
from infra.pocket.build import PocketModels, build_models, write_checksums

STAGES = {"domain-adapter": "domain-adapter", "motion-module": "motion-module", "motion-lora": "motion-lora-zoom-in"}


def build_pocket_weights(config: PocketModels, overrides: list[str], root: Path) -> Path:
    """Trains what ships with the project; returns `root/weights`, laid out as `infra/pocket/weights/`.

    Two to three hours on two cores. After a stop, the same call makes what is missing.
    """
    from flows.chain.workspace import Workspace
    from flows.recipes.recipes import recipe_named
    from infra.config import apply_overrides

    models = build_models(config, root / "models")
    base = ("base.path", models.folder / "base")
    recipe = apply_overrides(recipe_named("pocket-full"), [base, *overrides])
    workspace = Workspace(recipe, root / "stages")
    trained = [workspace.domain_adapter(), workspace.motion_module(), workspace.motion_lora()]
    return assemble(models.folder, trained, root / "weights")


def assemble(models: Path, trained: list[Artifact], out: Path) -> Path:
    """Copies models and stages into `out`, stages in fp16 and without logs, and writes the checksums."""
    for path in models.iterdir():
        if path.name != RECORD:
            _copy(path, out / path.name)
    for artifact in trained:
        target = out / STAGES[artifact.kind]
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path in artifact.folder.iterdir():
            if path.suffix == ".json":
                shutil.copy2(path, target)
            elif path.suffix == ".safetensors":
                _halve(path, target / path.name)
    write_checksums(out)
    return out


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _halve(source: Path, target: Path) -> None:
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        notes = file.metadata()
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    save_file(half, target, metadata=notes)
