"""What a weight file is, in words: for `animateflow weights info`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.files.inputs import weight_file
from components.files.kinds import KINDS, OURS
from components.files.names import is_original, motion_from_original
from components.files.weight_files import HASH, read_header, sha256_of_tensors
from components.motion import files as motion_files
from components.motion.sizes import completed_notes, sizes_of
from infra.errors import UserError
from infra.hashing import sha256_file


def describe(path: Path, hashes: bool = False) -> dict[str, Any]:
    """What a weight file is, from its header alone.

    Keys: path, kind, title, format (original, diffusers or other), preset, group_norm, image_group_norm, rank, tensors,
    parameters, dtypes, max_frames, hash_sha256 (of its tensors, as its maker noted it), metadata. With `hashes` the
    file is read whole: sha256 (its first ten digits are the AutoV2 hash of UIs), and whether hash_sha256 is right.

    Raises:
        UserError: no readable weight file there; or its tensors are not those that their maker hashed.
    """
    file = weight_file(path)
    header = read_header(file)
    ours = header.kind in OURS
    notes = header.notes | (_motion_notes(header.shapes, header.notes) if header.kind == motion_files.KIND else {})
    found: dict[str, Any] = {
        "path": str(file),
        "kind": header.kind,
        "title": KINDS[header.kind],
        "format": ("original" if is_original(header.shapes) else "diffusers") if ours else "other",
        "preset": notes.get("preset"),
        "group_norm": notes.get("group_norm"),
        "image_group_norm": notes.get("image_group_norm"),
        "rank": _rank(header.shapes),
        "tensors": len(header.shapes),
        "parameters": header.parameters,
        "dtypes": sorted(set(header.dtypes.values())),
        "max_frames": notes.get("max_frames"),
        "hash_sha256": header.metadata.get(HASH),
        "metadata": dict(sorted(header.metadata.items())),
    }
    if hashes:
        found["sha256"] = sha256_file(file)
        if found["hash_sha256"] is not None:
            _check_hash(file, found["hash_sha256"])
    return found


def _check_hash(file: Path, noted: str) -> None:
    actual = sha256_of_tensors(file)
    if actual.removeprefix("0x") != noted.removeprefix("0x").lower():
        raise UserError(
            f"The tensors of {file} have the hash {actual[:18]}…, and its maker noted {noted[:18]}….",
            "It was damaged or edited after it was written.",
            "Download or copy it again.",
        )


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    downs = (
        shape[0]
        for name, shape in shapes.items()
        if shape and re.search(r"(lora_A|lora_down|lora\.down)\.weight$", name)
    )
    return next(downs, None)


def _motion_notes(shapes: Mapping[str, tuple[int, ...]], notes: Mapping[str, str]) -> dict[str, str]:
    """Preset, norms and window by the shapes where the file does not say."""
    sizes = sizes_of(motion_from_original(shapes))
    assumed = {"group_norm": "per_frame (assumed: the official one)"}
    if sizes.positions is not None:
        assumed["max_frames"] = str(sizes.positions)
    return completed_notes(sizes, {**assumed, **notes})
