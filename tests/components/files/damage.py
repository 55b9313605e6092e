"""Ways to damage a weight file on purpose, for the examples by name: each takes the path of a sound file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.components.files.mutations.headers import METADATA, join, split
from tests.components.files.mutations.tensors import opened

Damage = Callable[[Path], object]


def raw(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def text(change: Callable[[bytes], bytes]) -> Damage:
    """Of a safetensors header, whose length is made to fit."""

    def damage(path: Path) -> None:
        header, data = split(path)
        join(path, change(header), data)

    return damage


def entry(name: str, **change: Any) -> Damage:
    def damage(header: bytes) -> bytes:
        found = json.loads(header)
        found[name] |= change
        return json.dumps(found).encode()

    return text(damage)


def note(name: str, value: Any) -> Damage:
    return entry(METADATA, **{name: value})


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Of a file that is valid again: its table of tensors, in a pickle the innermost dict."""

    def damage(path: Path) -> None:
        held, write, _ = opened(path)
        change(held)
        write()

    return damage


def put(**given: Any) -> Damage:
    return tensors(lambda held: held.update(given))


def without(*endings: str) -> Damage:
    return tensors(lambda held: [held.pop(name) for name in list(held) if name.endswith(endings)])


def every(change: Callable[[Tensor], Any]) -> Damage:
    return tensors(lambda held: held.update({name: change(tensor) for name, tensor in held.items()}))


def both(*damages: Damage) -> Damage:
    return lambda path: [damage(path) for damage in damages]


def config(**change: Any) -> Damage:
    def damage(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | change))

    return damage


def packed(path: Path) -> None:
    """The table of a zip with 400 MB of zeros behind it, half a megabyte on the disk."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in members.items():
            with archive.open(name, "w") as member:
                member.write(value)
                for _ in range(400 if name.endswith("data.pkl") else 0):
                    member.write(bytes(2**20))


def many_names(header: bytes) -> bytes:
    """The last of them a second time."""
    return b"{" + b"".join(b'"%d":1,' % i for i in range(60_000)) + b'"59999":1,' + header[1:]


def empty_entry(header: bytes) -> bytes:
    """No bytes, and sides of which each is possible and whose strides no integer holds."""
    entry = {"dtype": "F32", "shape": [0, 2**40, 2**40, 2**40], "data_offsets": [0, 0]}
    return json.dumps({"model.diffusion_model.x": entry}).encode()[:-1] + b"," + header[1:]


def share(held: dict[str, Any]) -> None:
    """800 MB of tensors in a file of 4 MB."""
    one = torch.ones(10**6)
    held.update((str(i), one) for i in range(200))


def name_by_numbers(held: dict[Any, Any]) -> None:
    """A key whose text is all numbers of a tensor."""
    numbers = torch.ones(10**6)
    held[torch.storage.TypedStorage(wrap_storage=numbers.untyped_storage(), dtype=numbers.dtype, _internal=True)] = 1
