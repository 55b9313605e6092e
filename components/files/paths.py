"""Paths that stand for weights: a weight file, or a folder that holds one."""

from __future__ import annotations

from pathlib import Path

from components.files.kinds import wrong_kind_error
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Input
from infra.artifacts.sealing import RECORD
from infra.errors import UserError

WEIGHTS_NAMES = {
    "motion-module": "diffusion_pytorch_model.safetensors",
    "domain-adapter": "domain_adapter.safetensors",
    "motion-lora": "motion_lora.safetensors",
}
"""Kind of weights to the name of the weight file in its artifact's folder."""
DIFFUSERS_LORA_NAME = "pytorch_lora_weights.safetensors"


def find_weight_file(path: Path) -> Path:
    """The weight file in an artifact's folder, a diffusers MotionAdapter folder or a diffusers LoRA folder. A path that
    is not a folder is returned as it is.

    Raises:
        UserError: the folder holds no such file.
    """
    if not path.is_dir():
        return path
    names = (*WEIGHTS_NAMES.values(), DIFFUSERS_LORA_NAME)
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise UserError(f"{path} holds no weight file.", f"Looked for {', '.join(names)}.", "Check the path.")
    return found


def require_exists(path: Path, what: str) -> Path:
    """The path, which a person gave as `what`.

    Raises:
        UserError: there is no file or folder at the path.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.", f"It was given as {what}.", "Check the path.")
    return path


def weights_input(path: Path, kind: str) -> Input:
    """Weights of this kind as an artifact's input: identified by the artifact's fingerprint, or by the file's hash
    where the path is no artifact.

    Raises:
        UserError: nothing at the path, or an artifact of another kind.
    """
    if (require_exists(path, kind.replace("-", " ")) / RECORD).is_file():
        found = artifacts.load(path)
        if found.kind != kind:
            raise wrong_kind_error(path, found.kind, kind)
        return found.as_input()
    return artifacts.outside(find_weight_file(path), kind)
