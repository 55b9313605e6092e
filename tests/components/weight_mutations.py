"""How weight files get damaged or forged, each way done to a sound file in place.

A mutation takes hypothesis' `draw` and the path: bytes of any file; length, text, table and metadata of a safetensors
header; tensors, written back as a valid file; what a pickle holds, and the members of its zip; whole other files.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Draw = Callable[[st.SearchStrategy[Any]], Any]
Mutation = Callable[[Draw, Path], None]
Tensors = dict[str, Tensor]

METADATA = "__metadata__"
MARK = "was-run"
DTYPES = ("F16", "BF16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "BOOL", "C64", "F8_E4M3", "F8_E8M0")
TORCH_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int16,
    torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
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
PART = "down_blocks.0.motion_modules.0."
STRANGERS = {  # one or two tensors of each kind that there is
    "motion": {PART + "temporal_transformer.transformer_blocks.0.strange": (3,)},
    "mid": {"mid_block.motion_modules.0.temporal_transformer.norm.weight": (96,)},
    "lora": {PART + "attn1.to_q.lora_A.weight": (4, 32), PART + "attn1.to_q.lora_B.weight": (32, 4)},
    "half": {PART + "attn1.to_q.lora_A.weight": ()},
    "adapter": {"down_blocks.0.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight": (4, 32)},
    "kohya": {"lora_unet_mid_block_attentions_0_proj_out.lora_down.weight": (4, 96)},
    "kohya elsewhere": {f"lora_unet_nowhere.lora_{side}.weight": (4, 4) for side in ("down", "up")},
    "loha": {"lora_unet_mid_block_attentions_0_proj_out.hada_w1_a": (4, 4)},
    "dora": {"lora_unet_mid_block_attentions_0_proj_out.dora_scale": (4,)},
    "embedding": {"emb_params": (3, 128)},
    "another embedding": {"string_to_param.#": (3, 128)},
    "checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3)},
    "beside a checkpoint": {"model_ema.decay": (), "model.diffusion_model.strange": (2,)},
    "beside its encoder": {"cond_stage_model.transformer.text_model.strange": (2,), "first_stage_model.strange": (2,)},
    "unet": {"conv_in.weight": (32, 4, 3, 3), "down_blocks.0.resnets.0.norm1.bias": (32,)},
    "controlnet": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
    "counters": {"epoch": (), "global_step": (1,)},
    "unknown": {"strange": (2,)},
}


def one(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


# Bytes


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


# The header of a safetensors file


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


# Tensors, in a file that is valid


def opened(path: Path) -> tuple[Tensors, Callable[[], None], Any]:
    """The dict of the tensors, what writes the file again, and all that a pickle holds."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        return tensors, lambda: save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path, metadata), None
    zipped = zipfile.is_zipfile(path)
    content = torch.load(path, weights_only=True)
    held = content.get("state_dict", content.get("string_to_param", content))
    return held, lambda: torch.save(content, path, _use_new_zipfile_serialization=zipped), content


def change_tensors(draw: Draw, path: Path) -> None:
    tensors, write, _ = opened(path)
    name, how = draw(one(*tensors)), draw(one(*TENSORS))
    tensor = tensors[name]
    if how == "value" and tensor.numel():
        value = draw(one(math.nan, math.inf, -math.inf, 60_000.0))
        tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
    elif how == "huge":
        value, dtype = draw(one((1e30, torch.float32), (3e38, torch.float32), (1e300, torch.float64)))
        for each in draw(one([name], list(tensors))):
            tensors[each] = torch.full_like(tensors[each], value, dtype=dtype)
    elif how == "dtype":
        tensors[name] = tensor.to(draw(one(*TORCH_DTYPES)))
    elif how == "all dtypes":
        dtype = draw(one(*TORCH_DTYPES))
        tensors |= {each: value.to(dtype) for each, value in tensors.items()}
    elif how == "shape":
        sides = list(tensor.shape)
        more = ([*sides, 1], [1, *sides], sides[:-1], [side + 1 for side in sides], [0, *sides[1:]], [2, *sides[1:]])
        tensors[name] = torch.ones(draw(one([], [0], [1, 3000], [3000, 1], [tensor.numel()], sides[::-1], *more)))
    elif how == "drop":
        for each in {name, *draw(st.lists(one(*tensors), max_size=3))}:
            del tensors[each]
    elif how == "drop a layer":
        layer = re.sub(r"(\.processor\.to_\w+_lora|\.lora_\w+)?(\.(down|up))?\.\w+$", ".", name)
        for each in [each for each in tensors if each.startswith(layer)]:
            del tensors[each]
    elif how == "drop alike":
        end = name.rpartition(".")[2]
        for each in [each for each in tensors if each.rpartition(".")[2] == end][draw(st.integers(0, 1)) :]:
            del tensors[each]
    elif how == "rename":
        tensors[draw(renamed(name)).replace("\ud800", "?")] = tensors.pop(name)
    elif how == "spelling":
        tensors[draw(one(*spellings(name)))] = torch.full_like(tensor, draw(one(7.0, 0.0)))
    else:
        for each, shape in STRANGERS[draw(one(*STRANGERS))].items():
            tensors.setdefault(each, torch.ones(shape))
    write()


TENSORS = (
    "value", "huge", "dtype", "all dtypes", "shape", "shape", "drop", "drop a layer", "drop alike", "rename",
    "spelling", "strangers", "strangers",
)  # fmt: skip


# Pickles


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


# Other files, and a folder's config


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
