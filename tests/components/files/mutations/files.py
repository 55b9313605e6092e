"""Whole other files, a folder's config, and anything that can happen to a file."""

from __future__ import annotations

import json
import math
from pathlib import Path

from hypothesis import strategies as st

from tests.components.files.mutations.headers import (
    NOT_TEXTS,
    SIDES,
    TOKENS,
    damage_length,
    damage_metadata,
    damage_table,
    damage_text,
)
from tests.components.files.mutations.pickles import change_members, change_pickle
from tests.components.files.mutations.raw import Draw, Mutation, damage_bytes, one
from tests.components.files.mutations.tensors import change_tensors

FILES = {
    "a web page": b"<!DOCTYPE html><html>please log in</html>",
    "a JSON text": b'{"error": "login"}',
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "a gzip archive": b"\x1f\x8b" + bytes(100),
    "empty": b"",
    "one byte": b"\x80",
    "eight bytes": bytes(8),
    "a length and a brace": bytes(8) + b"{",
    "zeros": bytes(5000),
    "the first bytes of a zip": b"PK\x03\x04",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a pickle of nothing": b"\x80\x02N.",
    "GGUF": b"GGUF" + bytes(60),
}
PLACES = ("a folder", "a link to nowhere", "a link to itself")


def replace_file(draw: Draw, path: Path) -> None:
    what = draw(one(*FILES, *PLACES))
    path.unlink()
    if what == "a folder":
        path.mkdir()
    elif what.startswith("a link"):
        path.symlink_to(path if what.endswith("itself") else path.with_name("nowhere"))
    else:
        path.write_bytes(FILES[what])


def damage_config(draw: Draw, path: Path) -> None:
    """The config.json of a MotionAdapter folder."""
    if draw(st.booleans()):
        raw = bytearray(path.read_bytes())
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(one(0, 1, 5))] = draw(one(*TOKENS, b""))
        path.write_bytes(raw)
        return
    config = json.loads(path.read_text())
    name = draw(one(*config, "conv_in_channels", "quantization_config"))
    value = draw(one(*SIDES, *NOT_TEXTS, [8, 8, 8], [4, 8, 8], [math.inf, 8, 8], [1, 1, 1], [0], [-4, 8, 8], 9, 16, 32))
    path.write_text(json.dumps(draw(one({**config, name: value}, {k: v for k, v in config.items() if k != name}))))


SAFETENSORS: tuple[Mutation, ...] = (
    damage_bytes, damage_length, damage_text, damage_table, damage_table, damage_metadata, change_tensors,
    change_tensors, replace_file,
)  # fmt: skip
PICKLES: tuple[Mutation, ...] = (
    damage_bytes, change_tensors, change_tensors, change_pickle, change_pickle, change_members, replace_file
)  # fmt: skip


def mutate(draw: Draw, path: Path) -> None:
    """Anything that can happen to a weight file at this path."""
    draw(one(*(SAFETENSORS if path.suffix == ".safetensors" else PICKLES)))(draw, path)
