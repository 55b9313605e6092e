"""Motion modules in files: read whole or refused, from diffusers' folder or the original format, and written.

What a file's tensors cannot say (heads, groups, norms) is in its notes; one without notes is taken for an official
release, as every other reader of these files takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from components.files import inputs
from components.files.names import DIFFUSERS_PE, motion_from_original, motion_to_original
from components.files.notes import metadata_for
from components.files.weight_files import read_header_of, read_tensors, write_weights
from components.motion.motion_module import network_of, to_convolutions
from components.motion.sizes import MotionSizes, completed_notes, odd_shape, settings_for, sizes_of
from infra.errors import UserError, listed
from infra.logs import get_logger
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import MotionAdapter

KIND = "motion-module"
WEIGHTS = inputs.WEIGHTS["motion-module"]
NORMS = ("per_frame", "pooled")
log = get_logger("components")


@dataclass(frozen=True)
class MotionWeights:
    """A motion module as its file has it: `settings` of its `MotionAdapter`, `state` in diffusers' names and the file's
    dtype, `notes`; positions and notes that the file leaves out are filled in."""

    path: Path
    settings: dict[str, Any]
    state: dict[str, Tensor]
    notes: dict[str, str]

    def with_positions(self, count: int) -> MotionWeights:
        """The same weights for another longest window, in frames."""
        settings = {**self.settings, "motion_max_seq_length": count}
        state = _with_sinusoids(self.state, empty_adapter(settings, self.notes["network"]))
        return MotionWeights(self.path, settings, state, {**self.notes, "max_frames": str(count)})


def is_motion_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / WEIGHTS).is_file()


def read_motion(path: Path) -> MotionWeights:
    """A motion module from a diffusers MotionAdapter folder or a file in either format's names, all tensors checked.

    Raises:
        UserError: no motion module there, or its tensors do not fit each other or its config; the message lists them.
    """
    if not path.is_file() and not is_motion_folder(path):
        raise UserError(
            f"{path} is not a motion module.",
            f"A motion module is a folder with config.json and {WEIGHTS}, or a file in the original format.",
            "Check the path given as motion module.",
        )
    file = path if path.is_file() else path / WEIGHTS
    header = read_header_of(file, KIND)
    config = {} if path.is_file() else _read_config(path)
    sizes = sizes_of(motion_from_original(header.shapes))
    settings = settings_for(path, sizes, header.notes, config)
    tensors = read_tensors(header)
    if path.is_dir() and (beside := [name for name in tensors if "motion_modules." not in name]):
        raise odd_shape(path, f"it has {listed(beside)} beside the temporal layers")
    state = motion_from_original(tensors)
    empty = empty_adapter(settings, sizes.network)
    _check_tensors(path, empty.state_dict(), state)
    _check_positions_agree(path, tensors)
    if sizes.positions is None:
        state = _with_sinusoids(state, empty)
    return MotionWeights(path, settings, state, _completed(path, sizes, header.notes))


def load_motion_module(path: Path, max_frames: int | None = None) -> tuple[MotionAdapter, dict[str, str]]:
    """A motion module in fp32 and its notes, from a diffusers MotionAdapter folder or the original format.

    The sinusoidal positions are made anew, for the file's own longest window or for `max_frames`.

    Raises:
        UserError: see `read_motion`.
    """
    given = read_motion(path)
    if max_frames is not None:
        given = given.with_positions(max_frames)
    adapter = empty_adapter(given.settings, given.notes["network"])
    made = _sinusoids(adapter)
    strange = [name for name, exact in made.items() if not _is_sinusoid(given.state[name], exact)]
    if strange:
        log.warning("%s holds positions of its own, not sinusoids; they are used as they are.", path)
    state = given.state | {name: exact for name, exact in made.items() if name not in strange}
    # Copies: what was read may be the file's own bytes, mapped into memory.
    own = {
        name: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    adapter.load_state_dict(own, assign=True)
    return adapter.eval(), given.notes


def save_motion_module(folder: Path, adapter: MotionAdapter, notes: Mapping[str, object]) -> None:
    """Writes a diffusers MotionAdapter folder, `notes` and the shape in the weights' metadata."""
    write_motion_folder(folder, adapter, adapter.state_dict(), {**notes, **shape_notes(adapter)})


def write_motion_folder(
    folder: Path, adapter: MotionAdapter, state: Mapping[str, Tensor], notes: Mapping[str, object]
) -> None:
    """The folder of an adapter's settings with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter.save_config(folder)
    write_weights(folder / WEIGHTS, state, metadata_for({**notes, "stage": KIND}, original=False))


def write_motion_original(target: Path, state: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """One file in the original format, from tensors in diffusers' names."""
    write_weights(target, motion_to_original(state), metadata_for({**notes, "stage": KIND}, original=True))


def shape_notes(adapter: MotionAdapter) -> dict[str, object]:
    """What an original file's tensors do not say of a module's shape."""
    heads = adapter.config.motion_num_attention_heads
    return {
        "network": network_of(adapter),
        "heads": ",".join(str(each) for each in heads) if isinstance(heads, (tuple, list)) else heads,
        "norm_groups": adapter.config.motion_norm_num_groups,
        "max_frames": adapter.config.motion_max_seq_length,
    }


def empty_adapter(settings: Mapping[str, Any], network: str) -> MotionAdapter:
    """The adapter of these settings without memory for its weights."""
    from diffusers import MotionAdapter

    with quiet(), torch.device("meta"):
        adapter = MotionAdapter.from_config(dict(settings))
        if network == "temporal-convolution":
            to_convolutions(adapter)
    return cast("MotionAdapter", adapter)


def _sinusoids(adapter: MotionAdapter) -> dict[str, Tensor]:
    """The positions that diffusers makes for an adapter, by name, each (1, frames, width) in fp32."""
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    shapes = {name: each.shape for name, each in adapter.state_dict().items() if name.endswith(DIFFUSERS_PE)}
    return {name: SinusoidalPositionalEmbedding(width, frames).pe for name, (_, frames, width) in shapes.items()}


def _with_sinusoids(state: Mapping[str, Tensor], adapter: MotionAdapter) -> dict[str, Tensor]:
    """In place of the positions, if there are any, and in the dtype of the weights."""
    dtype = next(tensor.dtype for name, tensor in state.items() if not name.endswith(DIFFUSERS_PE))
    return {**state, **{name: made.to(dtype) for name, made in _sinusoids(adapter).items()}}


def _read_config(folder: Path) -> dict[str, Any]:
    from diffusers import MotionAdapter

    try:
        with quiet():
            return dict(MotionAdapter.load_config(folder))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read: {error}.", "It gives the module's shape.", "Make it again."
        ) from None


def _check_tensors(path: Path, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: tensors are missing, unknown, or of other sizes; the message lists them.
    """
    positions = any(name.endswith(DIFFUSERS_PE) for name in given)  # all or none
    wrong = [f"{name} is missing" for name in own if name not in given and (positions or ".pos_embed." not in name)]
    wrong += [f"{name} is unknown" for name in given if name not in own]
    wrong += [
        f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in given.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} does not hold the tensors of its motion module: {listed(wrong)}.",
            "The file is damaged, incomplete, or of another kind.",
            "Make or download it again.",
        )


def _check_positions_agree(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, first in tensors.items():
        second = tensors.get(name.replace("attention_blocks.0.pos_encoder", "attention_blocks.1.pos_encoder"))
        if name.endswith("attention_blocks.0.pos_encoder.pe") and second is not None and not torch.equal(first, second):
            raise odd_shape(path, f"the two attentions of {name.split('.temporal')[0]} have unlike positions")


def _is_sinusoid(given: Tensor, exact: Tensor) -> bool:
    """Within what bf16 loses."""
    return bool((given.float() - exact).abs().max() < 1e-2)


def _completed(path: Path, sizes: MotionSizes, notes: Mapping[str, str]) -> dict[str, str]:
    """`completed_notes`, checked.

    Raises:
        UserError: the file notes a norm that there is not, or another network than its tensors are of.
    """
    if "preset" not in notes and sizes.preset == "v3" and sizes.positions is None:
        log.warning("The motion module has no positions, by which v1 and v3 are told apart; it is taken for v3.")
    assumed = {"beta_schedule": "linear", "stage": KIND, "network": sizes.network}
    completed = completed_notes(sizes, {**assumed, **notes})
    for name, allowed in {"group_norm": NORMS, "image_group_norm": NORMS, "network": (sizes.network,)}.items():
        if completed[name] not in allowed:
            raise odd_shape(
                path, f"its metadata say {name} {completed[name]!r}, and {' or '.join(allowed)} is possible"
            )
    return completed
