"""How a stage's weights are written: both formats, each read back and compared before the artifact is sealed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from components import lora
from components.formats import export_original
from components.motion_files import load_motion_module, save_motion_module

if TYPE_CHECKING:
    from diffusers import MotionAdapter

ORIGINAL = Path("original")


def save_lora(folder: Path, kind: str, name: str, weights: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """A LoRA of `kind` as `<name>` and `original/<name>` in `folder`."""
    lora.save(folder / name, kind, weights, notes)
    original = export_original(folder / name, folder / ORIGINAL / name)
    for path in (folder / name, original):
        assert _same(lora.load(path, kind).state, weights), f"{path} does not read back as it was written"


def save_motion(folder: Path, adapter: MotionAdapter, state: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """A motion module as a MotionAdapter folder and `original/motion_module.safetensors` in `folder`."""
    adapter.load_state_dict({name: tensor.cpu() for name, tensor in state.items()})
    save_motion_module(folder, adapter, notes)
    original = export_original(folder, folder / ORIGINAL / "motion_module.safetensors")
    expected = adapter.state_dict()
    for path in (folder, original):
        found = load_motion_module(path)[0].state_dict()
        assert _same(found, expected), f"{path} does not read back as it was written"


def _same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
