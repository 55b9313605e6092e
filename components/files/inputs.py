"""Weights as a person names them: a file, or the folder of an artifact; and as an artifact's input."""

from __future__ import annotations

from pathlib import Path

from components.files.kinds import wrong_kind
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Input
from infra.artifacts.sealing import RECORD
from infra.errors import UserError

WEIGHTS = {
    "motion-module": "diffusion_pytorch_model.safetensors",
    "domain-adapter": "domain_adapter.safetensors",
    "motion-lora": "motion_lora.safetensors",
}
"""The file of each kind of weights in its artifact's folder."""
FILES = (*WEIGHTS.values(), "pytorch_lora_weights.safetensors")


def weight_file(path: Path) -> Path:
    """The weight file that an artifact's folder, a MotionAdapter folder or a file's own path stands for.

    Raises:
        UserError: no weights there.
    """
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no weights of ours.", f"Looked for {', '.join(FILES)}.", "Check the path.")
        return found[0]
    return path


def existing(path: Path, what: str) -> Path:
    """
    Raises:
        UserError: there is nothing at the path that was given as `what`.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.", f"It was given as {what}.", "Check the path.")
    return path


def weights_input(path: Path, kind: str) -> Input:
    """Weights of a kind as an artifact's input: an artifact of ours by its fingerprint, else by its bytes.

    Raises:
        UserError: nothing there, or an artifact of another kind.
    """
    if (existing(path, kind.replace("-", " ")) / RECORD).is_file():
        found = artifacts.load(path)
        if found.kind != kind:
            raise wrong_kind(path, found.kind, kind)
        return found.as_input()
    return artifacts.outside(weight_file(path), kind)
