"""What a weight file is: for `animateflow weights info`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files.kinds import ANIMATEDIFF_KINDS, KINDS
from components.files.paths import find_weight_file
from components.files.state_dict_keys import is_original_format, motion_module_to_diffusers
from components.files.weights import HASH_KEY, read_header, sha256_of_tensors
from components.motion import files as motion_files
from components.motion.infer_config import infer_shape, with_default_metadata
from infra.errors import UserError
from infra.hashing import sha256_file


def describe(path: Path, hashes: bool = False) -> dict[str, Any]:
    """What a weight file is, from its header alone.

    Keys: path, kind, title, format (original, diffusers or other), preset, group_norm, image_group_norm, rank, tensors,
    parameters, dtypes, max_frames, hash_sha256 (of the tensors, from the metadata), metadata. With `hashes` the whole
    file is read: sha256 is added (its first ten digits are the AutoV2 hash of UIs), and hash_sha256 is checked.

    Raises:
        UserError: not a readable weight file, or hash_sha256 is not that of the tensors.
    """
    file = find_weight_file(path)
    header = read_header(file)
    metadata = header.animateflow_metadata
    if header.kind == motion_files.KIND:
        metadata = metadata | _motion_metadata(header.shapes, metadata)
    original = "original" if is_original_format(header.shapes) else "diffusers"
    description: dict[str, Any] = {
        "path": str(file),
        "kind": header.kind,
        "title": KINDS[header.kind],
        "format": original if header.kind in ANIMATEDIFF_KINDS else "other",
        "preset": metadata.get("preset"),
        "group_norm": metadata.get("group_norm"),
        "image_group_norm": metadata.get("image_group_norm"),
        "rank": _rank(header.shapes),
        "tensors": len(header.shapes),
        "parameters": header.parameters,
        "dtypes": sorted(set(header.dtypes.values())),
        "max_frames": metadata.get("max_frames"),
        "hash_sha256": header.metadata.get(HASH_KEY),
        "metadata": dict(sorted(header.metadata.items())),
    }
    if hashes:
        description["sha256"] = sha256_file(file)
        if description["hash_sha256"] is not None:
            _check_hash(file, description["hash_sha256"])
    return description


def _motion_metadata(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a motion module, with fields that it does not have inferred from the shapes."""
    shape = infer_shape(motion_module_to_diffusers(shapes))
    defaults = {"group_norm": "per_frame (assumed: the official one)"}
    if shape.positions is not None:
        defaults["max_frames"] = str(shape.positions)
    return with_default_metadata(shape, {**defaults, **metadata})


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank of a LoRA; None for other weights."""
    ranks = (
        shape[0]
        for name, shape in shapes.items()
        if shape and re.search(r"(lora_A|lora_down|lora\.down)\.weight$", name)
    )
    return next(ranks, None)


def _check_hash(file: Path, expected: str) -> None:
    actual = sha256_of_tensors(file)
    if actual.removeprefix("0x") != expected.removeprefix("0x").lower():
        raise UserError(
            f"The tensors of {file} have the hash {actual[:18]}…, and its metadata says {expected[:18]}….",
            "The file was damaged or edited after it was written.",
            "Download or copy it again.",
        )
