"""Weight files as strangers hand them to us: what is it really, what does it hold, what does it say about itself.

`read_header` touches the header only (8 bytes of length, then JSON), so a 7 GB file answers at once. Safetensors are
checked by `safetensors_header`, pickles opened by `pickles`; a name that promises one and hides the other is said so.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.files.kinds import kind_of, wrong_kind
from components.files.pickles import SUFFIXES as PICKLE_SUFFIXES
from components.files.pickles import load_pickle, looks_pickled
from components.files.safetensors_header import parse_header
from infra.errors import UserError
from infra.hashing import sha256_file

METADATA_PREFIX = "animateflow."
HASH = "modelspec.hash_sha256"
OTHER_FILES = {
    b"PK\x03\x04": ("a zip archive (a PyTorch .ckpt or .pt)", "Rename it to .ckpt if it is one that you trust."),
    b"\x80": ("a Python pickle", "Rename it to .ckpt if it is one that you trust."),
    b"version https://git-lfs": ("a git-lfs pointer, not the weights", "Run `git lfs pull` where it came from."),
    b"<": ("a web page, not weights", "The download needed a login or has moved: download it again in a browser."),
    b"{": ("a JSON text, not weights", "The download answered with an error message: open the file to read it."),
    b"GGUF": ("a GGUF file, quantised for other programs", "Download the safetensors version."),
    b"Rar!": ("a RAR archive", "Unpack it, and pass the weight file inside."),
    b"7z\xbc\xaf": ("a 7-zip archive", "Unpack it, and pass the weight file inside."),
    b"\x1f\x8b": ("a gzip archive", "Unpack it, and pass the weight file inside."),
}
TORCH_DTYPES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
LARGEST = 1e9
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Header:
    """What a weight file says before its tensors: `shapes` and `dtypes` by tensor name, `metadata` as written by its
    maker. Names are without the wrappers that trainers put around them (`state_dict.`, `module.`)."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def kind(self) -> str:
        """A key of `weight_kinds.KINDS`, from the tensors' names and shapes."""
        return kind_of(self.shapes)

    @property
    def parameters(self) -> int:
        """Numbers that are learnt; positional encodings are not."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not name.endswith(".pe"))

    @property
    def notes(self) -> dict[str, str]:
        """All that `write_weights` noted, without the prefix; empty when another tool wrote the file."""
        return {
            name.removeprefix(METADATA_PREFIX): value
            for name, value in self.metadata.items()
            if name.startswith(METADATA_PREFIX)
        }


def read_header(path: Path) -> Header:
    """The header, checked against the file's size. Of a pickle, which has none, its table of tensors.

    Raises:
        UserError: no such file, no weight file (naming what it is), damaged, cut short, or a pickle that is refused.
    """
    if _is_pickle(path):
        tensors = _unwrapped(path, load_pickle(path))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: TORCH_DTYPES.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()}
        return Header(path, {}, shapes, dtypes)
    parsed = parse_header(path)
    entries = _unwrapped(path, parsed.entries)
    shapes = {name: entry.shape for name, entry in entries.items()}
    return Header(path, parsed.metadata, shapes, {name: entry.dtype for name, entry in entries.items()})


def read_header_of(path: Path, kind: str, beside: str | None = None) -> Header:
    """The header of a file of this kind, whose weights are floating-point numbers; a tensor whose name the pattern
    `beside` matches is no weight.

    Raises:
        UserError: see `read_header`; a file of another kind (the message says which option it belongs to); or integer
            or quantised weights.
    """
    header = read_header(path)
    if header.kind != kind:
        raise wrong_kind(path, header.kind, kind)
    check_floats(header, (name for name in header.shapes if beside is None or not re.fullmatch(beside, name)))
    return header


def read_tensors(header: Header) -> dict[str, Tensor]:
    """The tensors of the file that this is the header of, on the CPU in the file's dtype.

    Raises:
        UserError: they cannot be read; or one holds NaN, infinity, or numbers that no weight has.
    """
    path = header.path
    if _is_pickle(path):
        tensors = {name: tensor.clone() for name, tensor in _unwrapped(path, load_pickle(path)).items()}
    else:
        try:
            tensors = _unwrapped(path, load_file(path))
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read: {error}.", "Its header is in order, its tensors are not.", "Download it again."
            ) from None
    check_numbers(path, tensors)
    return tensors


def check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: one of these tensors holds NaN, infinity, or numbers that no weight has.
    """
    for name, tensor in tensors.items():
        # No weight is that large, and sums and products of smaller ones stay finite in fp32. NaN is not smaller.
        if tensor.is_floating_point() and tensor.numel() and not float(tensor.float().abs().max()) <= LARGEST:
            raise UserError(
                f"{path} holds NaN, infinite or enormous numbers in {name}.",
                "The file is damaged, its training diverged, or it overflowed when it was made fp16.",
                "Download it again, or take another version of it.",
            )


def check_floats(header: Header, names: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of these tensors is not fp16, bf16, fp32 or fp64.
    """
    if odd := [name for name in names if header.dtypes[name] not in _FLOATS]:
        raise UserError(
            f"{header.path} holds {odd[0]} as {header.dtypes[odd[0]]}, not as floating-point numbers.",
            "Quantised and integer weights are not supported.",
            "Take the fp16 or fp32 version of the file.",
        )


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle that calls itself one.

    Raises:
        UserError: no file, no weight file, or a pickle under another name.
    """
    if not path.is_file():
        found = f"{path} is a folder." if path.is_dir() else f"{path} does not exist."
        raise UserError(found, "A .safetensors weight file is needed here.", "Check the path.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(64)
    has_header = start[8:9] == b"{"
    length_fits = has_header and int.from_bytes(start[:8], "little") <= size - 8  # it may begin as a pickle does
    if looks_pickled(start) and path.suffix.lower() in PICKLE_SUFFIXES and not length_fits:
        return True
    if not has_header:
        raise _not_weights(path, start, size)
    return False


def _not_weights(path: Path, start: bytes, size: int) -> UserError:
    if size == 0:
        return UserError(f"{path} is empty.", "The download failed.", "Download it again.")
    for magic, (what, advice) in OTHER_FILES.items():
        if start.lstrip().startswith(magic):
            return UserError(f"{path} is {what}.", "Its name promises something else.", advice)
    return UserError(
        f"{path} is not a safetensors file.", "Its first bytes fit no weight format.", "Download it again."
    )


def _unwrapped(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Without what trainers wrap around names, and without the official code's settings beside the weights."""
    found = {}
    for full, value in given.items():
        name = full.removeprefix("state_dict.").removeprefix("module.")
        if name.split(".")[0] in {"animatediff_config", "epoch", "global_step"}:
            continue
        if name in found:
            raise UserError(f"{path} is damaged: it holds {name} twice.", "Nothing was used of it.", "Make it again.")
        found[name] = value
    return found


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes safetensors with this metadata, whole or not at all, and the hash of its tensors as the field
    `modelspec.hash_sha256` that the SAI Model Spec describes.

    Raises:
        UserError: the file cannot be written; what was there before stays.
    """
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # follows the umask; safetensors writes files for its user alone
        save_file(plain, partial, metadata={"format": "pt", **metadata, HASH: "0x" + "0" * 64})
        partial.chmod(mode)
        _finish_header(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path} cannot be written: {reason}.",
            "What was there before is untouched.",
            "Name a file in a folder that you can write to, with room for it.",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _finish_header(path: Path) -> None:
    """Puts the tensors' hash into a fresh file's header, and its metadata in order: safetensors writes them in any, and
    the same weights should be the same bytes."""
    digest = sha256_of_tensors(path)
    with path.open("r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted({**header["__metadata__"], HASH: digest}.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header grew"
        handle.seek(8)
        handle.write(text.ljust(length))
        handle.flush()
        os.fsync(handle.fileno())


def sha256_of_tensors(path: Path) -> str:
    """What a safetensors file's `modelspec.hash_sha256` should be."""
    return "0x" + sha256_file(path, parse_header(path).data_start)
