"""Writes a stage's weights in both formats; each file is read back and compared before the artifact is sealed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.convert.formats import export_weights
from components.files.state_dict_keys import UNET_PREFIX
from components.lora import lora
from components.motion.files import load_motion_module, save_motion_module
from components.motion.module import network_of
from infra.errors import WorkError
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import MotionAdapter

ORIGINAL = Path("original")


def save_lora(
    folder: Path, kind: str, name: str, weights: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> None:
    """A LoRA of `kind` as `<name>` and `original/<name>` in `folder`.

    Raises:
        WorkError: a file does not read back, by our reader or diffusers', as it was written.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    lora.save(folder / name, kind, weights, metadata)
    original = export_weights(folder / name, folder / ORIGINAL / name)
    for path in (folder / name, original):
        _check_same(path, lora.load(path, kind).state, weights)
    with quiet():
        by_diffusers: Any = StableDiffusionLoraLoaderMixin.lora_state_dict(str(folder), weight_name=name)
    found = {layer.removeprefix(UNET_PREFIX): tensor for layer, tensor in by_diffusers[0].items()}
    _check_same(folder / name, found, {layer.removeprefix(UNET_PREFIX): tensor for layer, tensor in weights.items()})


def save_motion(
    folder: Path, adapter: MotionAdapter, state: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> None:
    """A motion module as a MotionAdapter folder and `original/motion_module.safetensors` in `folder`.

    Temporal convolutions, which no other program knows, as the folder alone.

    Raises:
        WorkError: a file does not read back, by our reader or diffusers', as it was written.
    """
    from diffusers import MotionAdapter

    adapter.load_state_dict({name: tensor.cpu() for name, tensor in state.items()})
    save_motion_module(folder, adapter, metadata)
    expected, written = adapter.state_dict(), [folder]
    known_elsewhere = network_of(adapter) == "temporal-transformer"
    if known_elsewhere:
        written.append(export_weights(folder, folder / ORIGINAL / "motion_module.safetensors"))
    for path in written:
        _check_same(path, load_motion_module(path)[0].state_dict(), expected)
    if known_elsewhere:
        with quiet():
            by_diffusers = MotionAdapter.from_pretrained(folder, local_files_only=True)
        _check_same(folder, by_diffusers.state_dict(), expected)


def _check_same(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    wrong = [
        name for name in {*found, *expected}
        if name not in found or name not in expected or not torch.equal(found[name], expected[name])
    ]  # fmt: skip
    if wrong:
        raise WorkError(
            f"{path} does not read back as it was written: {len(wrong)} tensors differ, such as {min(wrong)}.",
            "The disk or a library has changed them; the checkpoints are kept.",
            "Run the same command again to write it again.",
        )
