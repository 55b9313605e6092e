"""The header of a safetensors file, checked whole before a byte of its tensors is read.

A file is 8 bytes of length, that much JSON (name to dtype, shape and offsets; `__metadata__`), and the tensors, one
after the other. What a reader could get wrong about a damaged or hostile file is refused here: length, JSON, names that
appear twice, dtypes, shapes that do not fill their bytes, gaps, overlaps, and bytes past the last tensor.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError

HEADER_BYTES_MAX = 100_000_000
"""The format's own limit."""
SIDES_MAX, NUMBERS_MAX = 8, 2**56
DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
}


@dataclass(frozen=True)
class Entry:
    """One tensor: safetensors' name of its dtype, its shape, and its bytes [start, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """`entries` by name, in the order of their bytes; `data_start` is where these begin in the file."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


class _Malformed(Exception):
    """What is wrong, for the message."""


def parse_header(path: Path) -> SafetensorsHeader:
    """The header of a file that starts like safetensors.

    Raises:
        UserError: the file is cut short, has too many bytes, or its header breaks the format.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > HEADER_BYTES_MAX:
            raise _damaged(path, f"it announces a header of {length:,} bytes, and {HEADER_BYTES_MAX:,} are allowed")
        text = handle.read(length)
    if len(text) < length:
        raise _cut_short(path, size, 8 + length)
    try:
        entries, metadata = _parse(text)
        end = _check_layout(entries)
    except _Malformed as what:
        raise _damaged(path, str(what)) from None
    if 8 + length + end > size:
        raise _cut_short(path, size, 8 + length + end)
    if 8 + length + end < size:
        raise _damaged(path, f"it has {size - 8 - length - end:,} bytes after its last tensor")
    return SafetensorsHeader(entries, metadata, 8 + length)


def _parse(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _Malformed(f"{name!a} appears twice in its header")
            found[name] = value
        return found

    try:
        top = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise _Malformed("its header is not JSON") from None
    if not isinstance(top, dict):
        raise _Malformed("its header is not a JSON object")
    metadata = top.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise _Malformed("its metadata are not texts")
    entries = {name: _entry(name, value) for name, value in top.items()}
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))), metadata


def _is_text(value: Any) -> bool:
    """JSON can hold halves of characters, which cannot be written anywhere."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _entry(name: str, value: Any) -> Entry:
    if not _is_text(name) or not name.isprintable():
        raise _Malformed(f"{name!a} is no name of a tensor")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Malformed(f"its header does not give dtype, shape and data_offsets of {name!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _Malformed(f"{name!r} has the unknown dtype {str(dtype)[:20]!r}")
    # Sides beside a zero count too: torch multiplies them to strides.
    if not _is_counts(shape) or len(shape) > SIDES_MAX or math.prod(max(side, 1) for side in shape) > NUMBERS_MAX:
        raise _Malformed(f"{name!r} has the shape {str(shape)[:40]}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Malformed(f"{name!r} has the offsets {str(offsets)[:40]}")
    wanted = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if offsets[1] - offsets[0] != wanted:
        raise _Malformed(
            f"{name!r} has {offsets[1] - offsets[0]:,} bytes, and {dtype} of {str(tuple(shape))[:40]} takes {wanted:,}"
        )
    return Entry(dtype, tuple(shape), *offsets)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _check_layout(entries: dict[str, Entry]) -> int:
    """The end of the last tensor; entries are in the order of their bytes."""
    at = 0
    for name, entry in entries.items():
        if entry.start != at:
            raise _Malformed(f"the bytes of {name!r} {'overlap' if entry.start < at else 'leave a gap after'} others'")
        at = entry.end
    return at


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}.", "Nothing was read from it.", "Download or make it again.")


def _cut_short(path: Path, size: int, promised: int) -> UserError:
    return UserError(
        f"{path} has {size:,} bytes and its header promises {promised:,}.",
        "The file was cut short or damaged on its way.",
        "Download or copy it again.",
    )
