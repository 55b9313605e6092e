"""The header of a safetensors file, validated before any tensor is read.

The format: 8 bytes with the length of the header; the header, a JSON object (tensor name to dtype, shape and
data_offsets, and `__metadata__`); the bytes of the tensors. Refused: a wrong length, invalid JSON, a duplicate name,
an unknown dtype, a shape that does not match its number of bytes, gaps and overlaps between tensors, and bytes after
the last tensor.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import UserError

HEADER_BYTES_MAX = 100_000_000
"""The limit of the format."""
DIMENSIONS_MAX, ELEMENTS_MAX = 8, 2**56
"""Limits on one tensor."""
DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
}


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype as safetensors spells it, its shape, and its byte range [start, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """`entries` by tensor name, in file order. `data_start` is the offset in the file of the first tensor byte."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


class _MalformedError(Exception):
    """Its text says what is wrong."""


def parse_header(path: Path) -> SafetensorsHeader:
    """The header of a safetensors file.

    Raises:
        UserError: the file is truncated, has too many bytes, or its header is malformed.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > HEADER_BYTES_MAX:
            raise _damaged(path, f"its header has {length:,} bytes, and at most {HEADER_BYTES_MAX:,} are allowed")
        text = handle.read(length)
    if len(text) < length:
        raise _truncated(path, size, 8 + length)
    try:
        entries, metadata = _parse(text)
        end = _check_layout(entries)
    except _MalformedError as what:
        raise _damaged(path, str(what)) from None
    if 8 + length + end > size:
        raise _truncated(path, size, 8 + length + end)
    if 8 + length + end < size:
        raise _damaged(path, f"it has {size - 8 - length - end:,} bytes after its last tensor")
    return SafetensorsHeader(entries, metadata, 8 + length)


def _parse(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _MalformedError(f"{name!a} appears twice in its header")
            found[name] = value
        return found

    try:
        top = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise _MalformedError("its header is not JSON") from None
    if not isinstance(top, dict):
        raise _MalformedError("its header is not a JSON object")
    metadata = top.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, (*metadata, *metadata.values()))):
        raise _MalformedError("its metadata is not text")
    entries = {name: _entry(name, value) for name, value in top.items()}
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end))), metadata


def _is_text(value: Any) -> bool:
    """Whether it is a string without lone surrogates, which JSON allows and UTF-8 does not."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _entry(name: str, value: Any) -> Entry:
    if not _is_text(name) or not name.isprintable():
        raise _MalformedError(f"{name!a} is not a tensor name")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _MalformedError(f"its header does not give dtype, shape and data_offsets of {name!r}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _MalformedError(f"{name!r} has the unknown dtype {str(dtype)[:20]!r}")
    # A dimension of 0 counts as 1 here: torch computes strides from the other dimensions even then.
    if not _is_counts(shape) or len(shape) > DIMENSIONS_MAX or math.prod(max(size, 1) for size in shape) > ELEMENTS_MAX:
        raise _MalformedError(f"{name!r} has the shape {str(shape)[:40]}")
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _MalformedError(f"{name!r} has the offsets {str(offsets)[:40]}")
    expected = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if offsets[1] - offsets[0] != expected:
        raise _MalformedError(
            f"{name!r} has {offsets[1] - offsets[0]:,} bytes, and {dtype} of shape {str(tuple(shape))[:40]} "
            f"takes {expected:,}"
        )
    return Entry(dtype, tuple(shape), *offsets)


def _is_counts(value: Any) -> bool:
    """Whether it is a list of integers from 0 to 2^63 - 1."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _check_layout(entries: dict[str, Entry]) -> int:
    """The end of the last tensor. Entries are in file order."""
    end = 0
    for name, entry in entries.items():
        if entry.start != end:
            wrong = "overlap with" if entry.start < end else "leave a gap after"
            raise _MalformedError(f"the bytes of {name!r} {wrong} those of another tensor")
        end = entry.end
    return end


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}.", "Nothing was loaded from it.", "Download it again.")


def _truncated(path: Path, size: int, expected: int) -> UserError:
    return UserError(
        f"{path} has {size:,} bytes, and {expected:,} by its header.",
        "The file was truncated or damaged, often by a download that stopped.",
        "Download or copy it again.",
    )
