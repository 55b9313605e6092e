"""Bytes of any file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mutation = Callable[[Draw, Path], None]


def one(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def place(draw: Draw, raw: bytearray | bytes) -> int:
    """Of a byte: near the beginning or the end, where formats keep their tables, or anywhere."""
    last, near = max(0, len(raw) - 1), min(len(raw), 20_000)
    return draw(st.integers(0, near) | st.integers(len(raw) - near, last) | st.integers(0, last))


def flip(draw: Draw, raw: bytearray) -> None:
    for _ in range(draw(st.integers(1, 4))):
        if raw:
            raw[min(place(draw, raw), len(raw) - 1)] ^= 1 << draw(st.integers(0, 7))


def truncate(draw: Draw, raw: bytearray) -> None:
    del raw[place(draw, raw) :]


def append(draw: Draw, raw: bytearray) -> None:
    raw += draw(one(b"\x00", b"more", bytes(5000), b"PK\x05\x06" + bytes(18)))


def splice(draw: Draw, raw: bytearray) -> None:
    at = place(draw, raw)
    raw[at:at] = draw(st.binary(min_size=1, max_size=40))


def zero(draw: Draw, raw: bytearray) -> None:
    at = place(draw, raw)
    raw[at : at + draw(st.integers(1, 400))] = bytes(min(len(raw) - at, 200))


def double(draw: Draw, raw: bytearray) -> None:
    at = place(draw, raw)
    raw[at:at] = raw[at : at + draw(st.integers(1, 400))]


def swap_halves(draw: Draw, raw: bytearray) -> None:
    at = draw(one(len(raw) // 2, place(draw, raw)))
    raw[:] = raw[at:] + raw[:at]


BYTES = (flip, truncate, append, splice, zero, double, swap_halves)


def damage_bytes(draw: Draw, path: Path) -> None:
    raw = bytearray(path.read_bytes())
    draw(one(*BYTES))(draw, raw)
    path.write_bytes(raw)
