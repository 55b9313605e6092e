"""The header of a safetensors file: its length, text, table and metadata."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.components.files.mutations.raw import Draw, one

METADATA = "__metadata__"
DTYPES = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "BOOL", "C64", "F8_E4M3", "F8_E8M0")
TOKENS = (
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b".5", b"e9", b"\\", b"\\ud800", b"\xff\xfe", b"\x00", b"NaN",
    b"Infinity", b"1e999", b"true", b"null", b"9" * 40, b"9" * 4000, b"9" * 5000, b"[" * 100_000, b'{"a":' * 100_000,
)  # fmt: skip
SIDES = (-1, 0, 1, 3, True, 1.5, 2.0, "3", None, [], {}, 2**31, 2**62, 2**63, 2**70, 10**4000, math.nan, math.inf)
SHAPES = ([], [0], [1], [0, *[2**62] * 3], [0, *[2**40] * 3], [2**62] * 300, [1] * 70, None, "x", {}, 5, [[1]])
NOTES = ("heads", "norm_groups", "max_frames", "group_norm", "image_group_norm", "preset", "network", "rank", "alpha")
KEYS = (*(f"animateflow.{name}" for name in NOTES), "modelspec.hash_sha256", "lora_adapter_metadata", "format", "x")
TEXTS = (
    "", " ", "0", "-1", "8", "16", "4,8,8", "8,8,8", "4,8", "1.5", "1e3", "1e999", "NaN", "inf", "9" * 30, "9" * 5000,
    "100000", "٨", "true", "null", "[]", "{}", "[" * 100_000, "v1", "v9", "pooled", "per_frame", "\ud800", "0x",
    "temporal-convolution", "temporal-transformer", "0x" + "0" * 64,
)  # fmt: skip
NUMBERS = (4, 8, 1, 0, -4, 2, True, None, "4", "x", math.nan, math.inf, 1e-300, 1e300, 10**9, 10**400, [], {})
NOT_TEXTS = (5, None, True, 1.5, [], {}, ["a"])


def split(path: Path) -> tuple[bytes, bytes]:
    """The header's text and the tensors' bytes."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return raw[8:end], raw[end:]


def join(path: Path, text: bytes, data: bytes) -> None:
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def damage_length(draw: Draw, path: Path) -> None:
    text, data = split(path)
    near = st.integers(-9, 9).map(lambda more: max(0, len(text) + more))
    far = one(0, 1, 7, 8, len(text) + len(data), 10**8, 10**8 + 1, 2**31, 2**32, 2**63, 2**64 - 1)
    path.write_bytes(draw(near | far).to_bytes(8, "little") + text + data)


def damage_text(draw: Draw, path: Path) -> None:
    """Characters replaced, inserted and left out, or an entry repeated."""
    text, data = split(path)
    at = draw(st.integers(0, len(text)) | st.integers(0, min(300, len(text))))
    gone = draw(one(0, 1, 2, 10))
    names = [name for name in json.loads(text) if name != METADATA]
    again = json.dumps(draw(one(*names))).encode() + b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    how = draw(one("replace", "insert", "leave out", "twice"))
    if how == "twice":
        text = b"{" + again + text[1:]
    else:
        text = text[:at] + (b"" if how == "leave out" else draw(one(*TOKENS))) + text[at + gone * (how != "insert") :]
    join(path, text, data)


def damage_table(draw: Draw, path: Path) -> None:
    """The header as an object: another entry, or other sides, offsets and dtypes."""
    text, data = split(path)
    header: dict[str, Any] = json.loads(text)
    names = [name for name in header if name != METADATA]
    name, other = draw(one(*names)), draw(one(*names))
    entry, how = header[name], draw(one(*TABLE))
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if how == "drop":
        del header[name]
    elif how == "rename":
        header[draw(renamed(name))] = header.pop(name)
    elif how == "transpose":
        shape.reverse()
    elif how == "dtype":
        entry["dtype"] = draw(one(*DTYPES, "F33", "", None, 5, []))
    elif how == "all dtypes":
        dtype = draw(one(*DTYPES))
        for each in names:
            header[each]["dtype"] = dtype
    elif how == "side" and shape:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(one(*SIDES))
    elif how == "shape":
        entry["shape"] = draw(one(*SHAPES, [*shape, 1], [1] * 70 + shape))
    elif how == "offsets":
        odd = ([end, start], [start + 1, end + 1], [start - 1, end], [start, end + 4], [start, start], [0, 2**40])
        entry["data_offsets"] = draw(one(*odd, [start], [start, end, end], None, "x", [True, end], [0.0, end], [-1, 3]))
    elif how == "swap shapes":
        entry["shape"], header[other]["shape"] = header[other]["shape"], shape
    elif how == "swap offsets":
        entry["data_offsets"], header[other]["data_offsets"] = header[other]["data_offsets"], [start, end]
    elif how == "order":
        header = dict(sorted(header.items(), reverse=True))
    elif how == "keys":
        entry[draw(one("x", "", "shape2"))] = draw(one(1, None, "x"))
    else:
        header[name] = draw(one(None, [], "x", {}, {"dtype": "F32"}))
    join(path, json.dumps(header).encode(), data)


TABLE = (
    "drop", "rename", "transpose", "dtype", "all dtypes", "side", "side", "shape", "offsets", "swap shapes",
    "swap offsets", "order", "keys", "entry",
)  # fmt: skip


def renamed(name: str) -> st.SearchStrategy[str]:
    """Another name, or another spelling of the same."""
    return one(
        "", name + "x", name.upper(), f"epoch.{name}", name.replace(".0.", ".7."), name.replace(".1.", ".0."),
        name.replace("down", "up"), name.rpartition(".")[2], f"{name}\ud800", f"{name}\n", *spellings(name),
    )  # fmt: skip


def spellings(name: str) -> tuple[str, ...]:
    """Names under which some program saves the same tensor."""
    without = name.replace(".processor.", ".").replace(".temporal_transformer.", ".")
    return f"module.{name}", f"state_dict.{name}", f"unet.{name}", f"base_model.model.{name}", without


def damage_metadata(draw: Draw, path: Path) -> None:
    """Notes of another sense or of none; the tensors stay as they are."""
    text, data = split(path)
    header = json.loads(text)
    metadata = header.setdefault(METADATA, {})
    how = draw(one("text", "text", "peft", "peft", "value", "all"))
    if how == "text":
        metadata[draw(one(*KEYS))] = draw(one(*TEXTS))
    elif how == "peft":
        said = {"r": draw(one(4, *NUMBERS) | st.just(4)), "lora_alpha": draw(one(*NUMBERS) | st.just(8))}
        said |= draw(one({}, {"use_rslora": True}, {"alpha_pattern": {"a": 1}}, {"bias": "none"}, {"bias": [1]}))
        metadata["lora_adapter_metadata"] = json.dumps({draw(one("", "unet.")) + key: said[key] for key in said})
    elif how == "value":
        metadata[draw(one(*KEYS))] = draw(one(*NOT_TEXTS))
    else:
        header[METADATA] = draw(one(*NOT_TEXTS, {}))
    join(path, json.dumps(header).encode(), data)
