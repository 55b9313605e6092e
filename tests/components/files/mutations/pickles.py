"""What a pickle holds, and the members of its zip."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from tests.components.files.mutations.raw import BYTES, Draw, damage_bytes, one
from tests.components.files.mutations.tensors import opened

MARK = "was-run"


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def circle(width: int = 30) -> dict[str, Any]:
    """A dict that is its own values: walking it by names never ends."""
    found: dict[str, Any] = {}
    found.update((str(i), found) for i in range(width))
    return found


def laughs(depth: int = 7, width: int = 20) -> dict[str, Any]:
    """A few dicts, each many times in the next: `width ** depth` names."""
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {str(i): found for i in range(width)}
    return found


def deep(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


def change_pickle(draw: Draw, path: Path) -> None:
    """Something else than tensors by names, or tensors that are not what they seem."""
    tensors, write, content = opened(path)
    name, how = draw(one(*tensors)), draw(one("value", "value", "key", "share", "beside"))
    tensor = tensors[name]
    odd = {  # drawn by name: hypothesis prints what it drew, and some of these have no end
        "stride 0": tensor.flatten()[:1].expand(10**12), "sparse": tensor.to_sparse(), "list": [tensor],
        "meta": torch.empty(10**9, device="meta"), "view": tensor.t() if tensor.ndim == 2 else tensor[None],
        "parameter": nn.Parameter(tensor), "tuple": (tensor, 1), "none": None, "number": 5, "text": "x", "bytes": b"x",
        "dict": {"b": tensor}, "same name": {name: tensor}, "deep": deep(tensor, 20), "circle": circle(),
        "laughs": laughs(), "more laughs": laughs(2, 5000), "malicious": Malicious(path.with_name(MARK)),
    }  # fmt: skip
    if how == "value":
        tensors[name] = odd[draw(one(*odd))]
    elif how == "key":
        key: Any = draw(one(7, (1, 2), None, b"x", "\ud800", f"{name}\ud800", True))
        tensors[key] = draw(one(tensor, tensor, 5, {"b": tensor}))
        if draw(st.booleans()):
            del tensors[name]
    elif how == "share":
        for each in draw(st.lists(one(*tensors), max_size=9)):
            if tensors[each].shape == tensor.shape:
                tensors[each] = tensor
    else:
        value = odd[draw(one(*odd))]
        content[draw(one("callbacks", "optimizer", "epoch", "state_dict", "string_to_token", name))] = value
    write()


def change_members(draw: Draw, path: Path) -> None:
    """The zip of a pickle, with checksums in order and one member damaged."""
    if not zipfile.is_zipfile(path):
        return damage_bytes(draw, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    table = next(name for name in members if name.endswith("data.pkl"))
    name = draw(one(table, table, table, *members))
    how, raw = draw(one("bytes", "bytes", "bytes", "drop", "empty", "name", "deflate")), bytearray(members[name])
    if how == "bytes":
        draw(one(*BYTES))(draw, raw)
        members[name] = bytes(raw)
    elif how == "empty":
        members[name] = b""
    elif how != "deflate":
        kept = members.pop(name)
        if how == "name":
            members[name + "x"] = kept
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED if how == "deflate" else zipfile.ZIP_STORED) as archive:
        for each, value in members.items():
            archive.writestr(each, value)
    path.write_bytes(written.getvalue())
    return None
