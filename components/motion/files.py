"""Motion modules in files: diffusers' MotionAdapter folder and the original format.

Every tensor of a file is loaded, or the file is refused. What the tensors do not say (heads, GroupNorm groups,
GroupNorm modes) is in the metadata. A file without metadata is treated as an official release, as other programs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from components.files.metadata import to_safetensors_metadata
from components.files.paths import WEIGHTS_NAMES
from components.files.state_dict_keys import DIFFUSERS_PE, motion_module_to_diffusers, motion_module_to_original
from components.files.weights import read_header_of_kind, read_tensors, write_weights
from components.motion.infer_config import (
    MotionShape,
    infer_adapter_config,
    infer_shape,
    invalid_shape_error,
    with_default_metadata,
)
from components.motion.module import network_of, replace_with_convolutions
from infra.errors import UserError, listed
from infra.logs import get_logger
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import MotionAdapter

KIND = "motion-module"
WEIGHTS_NAME = WEIGHTS_NAMES[KIND]
GROUP_NORM_MODES = ("per_frame", "pooled")
log = get_logger("components")


@dataclass(frozen=True)
class MotionWeights:
    """A motion module as it is in its file. Positional encodings and metadata that the file does not have are added."""

    path: Path
    config: dict[str, Any]
    """The config of its `MotionAdapter`."""
    state: dict[str, Tensor]
    """The tensors by diffusers' keys, in the file's dtype."""
    metadata: dict[str, str]

    def with_positions(self, count: int) -> MotionWeights:
        """The same weights with positional encodings for `count` frames."""
        config = {**self.config, "motion_max_seq_length": count}
        state = _with_sinusoids(self.state, meta_adapter(config, self.metadata["network"]))
        return MotionWeights(self.path, config, state, {**self.metadata, "max_frames": str(count)})


def load_motion_module(path: Path, max_frames: int | None = None) -> tuple[MotionAdapter, dict[str, str]]:
    """A motion module in fp32 and its metadata, from a diffusers MotionAdapter folder or a file.

    The sinusoidal positional encodings are computed in fp32, for as many frames as in the file or for `max_frames`.

    Raises:
        UserError: see `read_motion_module`.
    """
    weights = read_motion_module(path)
    if max_frames is not None:
        weights = weights.with_positions(max_frames)
    adapter = meta_adapter(weights.config, weights.metadata["network"])
    sinusoids = _sinusoids(adapter)
    learned = [key for key, exact in sinusoids.items() if not _is_sinusoid(weights.state[key], exact)]
    if learned:
        log.warning("The positional encodings of %s are not sinusoids. They are used as they are.", path)
    state = weights.state | {key: exact for key, exact in sinusoids.items() if key not in learned}
    # Copies, since the tensors that were read may be memory-mapped.
    copies = {
        key: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for key, tensor in state.items()
    }
    adapter.load_state_dict(copies, assign=True)
    return adapter.eval(), weights.metadata


def read_motion_module(path: Path) -> MotionWeights:
    """A motion module from a diffusers MotionAdapter folder, or from a file with original or diffusers' keys.

    Raises:
        UserError: not a motion module, or its tensors do not fit each other or its config.json; the message lists them.
    """
    if not path.is_file() and not is_motion_adapter_folder(path):
        raise UserError(
            f"{path} is not a motion module.",
            f"A motion module is a folder with config.json and {WEIGHTS_NAME}, or a file in the original format.",
            "Check the path given as motion module.",
        )
    header = read_header_of_kind(path if path.is_file() else path / WEIGHTS_NAME, KIND)
    shape = infer_shape(motion_module_to_diffusers(header.shapes))
    metadata = header.animateflow_metadata
    config = infer_adapter_config(path, shape, metadata, {} if path.is_file() else _read_config(path))
    tensors = read_tensors(header)
    if path.is_dir() and (other := [name for name in tensors if "motion_modules." not in name]):
        raise invalid_shape_error(path, f"it has {listed(other)}, which are not of a temporal layer")
    state = motion_module_to_diffusers(tensors)
    adapter = meta_adapter(config, shape.network)
    _check_tensors(path, adapter.state_dict(), state)
    _check_positions_agree(path, tensors)
    if shape.positions is None:
        state = _with_sinusoids(state, adapter)
    return MotionWeights(path, config, state, _complete_metadata(path, shape, metadata))


def is_motion_adapter_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / WEIGHTS_NAME).is_file()


def save_motion_module(folder: Path, adapter: MotionAdapter, metadata: Mapping[str, object]) -> None:
    """Writes a diffusers MotionAdapter folder; `shape_metadata` is added to the metadata."""
    write_motion_adapter_folder(folder, adapter, adapter.state_dict(), {**metadata, **shape_metadata(adapter)})


def write_motion_adapter_folder(
    folder: Path, adapter: MotionAdapter, state: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> None:
    """Writes a diffusers MotionAdapter folder with the config of the adapter and these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter.save_config(folder)
    write_weights(folder / WEIGHTS_NAME, state, to_safetensors_metadata({**metadata, "stage": KIND}, original=False))


def write_original_motion_module(target: Path, state: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Writes a file in the original format, from tensors by diffusers' keys."""
    fields = {**metadata, "stage": KIND}
    write_weights(target, motion_module_to_original(state), to_safetensors_metadata(fields, original=True))


def shape_metadata(adapter: MotionAdapter) -> dict[str, object]:
    """The metadata fields that hold the network, heads, GroupNorm groups and positions of an adapter."""
    heads = adapter.config.motion_num_attention_heads
    return {
        "network": network_of(adapter),
        "heads": ",".join(str(each) for each in heads) if isinstance(heads, (tuple, list)) else heads,
        "norm_groups": adapter.config.motion_norm_num_groups,
        "max_frames": adapter.config.motion_max_seq_length,
    }


def meta_adapter(config: Mapping[str, Any], network: str) -> MotionAdapter:
    """The adapter with this config on torch's meta device, which takes no memory for its weights."""
    from diffusers import MotionAdapter

    with quiet(), torch.device("meta"):
        adapter = MotionAdapter.from_config(dict(config))
        if network == "temporal-convolution":
            replace_with_convolutions(adapter)
    return cast("MotionAdapter", adapter)


def _sinusoids(adapter: MotionAdapter) -> dict[str, Tensor]:
    """The sinusoidal positional encodings of an adapter by key, each (1, frames, width) in fp32."""
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    shapes = {key: each.shape for key, each in adapter.state_dict().items() if key.endswith(DIFFUSERS_PE)}
    return {key: SinusoidalPositionalEmbedding(width, frames).pe for key, (_, frames, width) in shapes.items()}


def _with_sinusoids(state: Mapping[str, Tensor], adapter: MotionAdapter) -> dict[str, Tensor]:
    """The state with the sinusoidal positional encodings of the adapter, in the dtype of the weights."""
    dtype = next(tensor.dtype for key, tensor in state.items() if not key.endswith(DIFFUSERS_PE))
    return {**state, **{key: exact.to(dtype) for key, exact in _sinusoids(adapter).items()}}


def _is_sinusoid(encoding: Tensor, exact: Tensor) -> bool:
    """Whether they are equal to the precision of bf16."""
    return bool((encoding.float() - exact).abs().max() < 1e-2)


def _read_config(folder: Path) -> dict[str, Any]:
    from diffusers import MotionAdapter

    try:
        with quiet():
            return dict(MotionAdapter.load_config(folder))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read: {error}.",
            "It gives the sizes of the motion module.",
            "Download or export it again.",
        ) from None


def _check_tensors(path: Path, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: tensors are missing, unknown, or of other shapes; the message lists them.
    """
    has_positions = any(key.endswith(DIFFUSERS_PE) for key in state)  # of a file all may be missing, but not some
    required = [key for key in expected if has_positions or not key.endswith(DIFFUSERS_PE)]
    wrong = [f"{key} is missing" for key in required if key not in state]
    wrong += [f"{key} is unknown" for key in state if key not in expected]
    wrong += [
        f"{key} is {tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
        for key, tensor in state.items()
        if key in expected and tensor.shape != expected[key].shape
    ]
    if wrong:
        raise UserError(
            f"{path} does not hold the tensors of its motion module: {listed(wrong)}.",
            "The file is damaged, incomplete, or of another kind.",
            "Download or export it again.",
        )


def _check_positions_agree(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Checks that the two attentions of a block have equal positional encodings, since diffusers has one for both."""
    for name, first in tensors.items():
        second = tensors.get(name.replace("attention_blocks.0.pos_encoder", "attention_blocks.1.pos_encoder"))
        if name.endswith("attention_blocks.0.pos_encoder.pe") and second is not None and not torch.equal(first, second):
            module = name.split(".temporal")[0]
            raise invalid_shape_error(path, f"the two attentions of {module} have different positional encodings")


def _complete_metadata(path: Path, shape: MotionShape, metadata: Mapping[str, str]) -> dict[str, str]:
    """`with_default_metadata`, checked.

    Raises:
        UserError: an unknown GroupNorm mode, or another network than that of the tensors.
    """
    if "preset" not in metadata and shape.preset == "v3" and shape.positions is None:
        log.warning("Without positional encodings, v1 and v3 cannot be told apart. The motion module is taken for v3.")
    defaults = {"beta_schedule": "linear", "stage": KIND, "network": shape.network}
    completed = with_default_metadata(shape, {**defaults, **metadata})
    allowed = {"group_norm": GROUP_NORM_MODES, "image_group_norm": GROUP_NORM_MODES, "network": (shape.network,)}
    for field, values in allowed.items():
        if completed[field] not in values:
            raise invalid_shape_error(
                path, f"its metadata has {field} {completed[field]!r}, and possible is {' or '.join(values)}"
            )
    return completed
