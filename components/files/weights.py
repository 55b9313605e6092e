"""Weight files: read and written as safetensors, read from pickles too.

Files from elsewhere are not trusted: their headers are validated and their tensors are checked. A file that is not what
its name says is refused with what it is. `read_header` reads the header only, so it is fast for files of any size.
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

from components.files.kinds import infer_kind, wrong_kind_error
from components.files.pickles import SUFFIXES as PICKLE_SUFFIXES
from components.files.pickles import load_pickle, starts_like_pickle
from components.files.safetensors_header import parse_header
from infra.errors import UserError
from infra.hashing import sha256_file

METADATA_PREFIX = "animateflow."
HASH_KEY = "modelspec.hash_sha256"
OTHER_FORMATS = {
    b"PK\x03\x04": ("a zip archive (a PyTorch .ckpt or .pt)", "Rename it to .ckpt if it is one that you trust."),
    b"\x80": ("a Python pickle", "Rename it to .ckpt if it is one that you trust."),
    b"version https://git-lfs": ("a git-lfs pointer, not the weights", "Run `git lfs pull` in its repository."),
    b"<": ("a web page, not weights", "The download needs a login, or it has moved. Download it in a browser."),
    b"{": ("a JSON text, not weights", "The download failed. Open the file to read the error message."),
    b"GGUF": ("a GGUF file, which is quantised", "Download the safetensors version."),
    b"Rar!": ("a RAR archive", "Unpack it, and pass the weight file inside."),
    b"7z\xbc\xaf": ("a 7-zip archive", "Unpack it, and pass the weight file inside."),
    b"\x1f\x8b": ("a gzip archive", "Unpack it, and pass the weight file inside."),
}
"""First bytes of a file to its format and what to do."""
DTYPE_NAMES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
LARGEST_WEIGHT = 1e9
"""No weight is as large, and sums and products of smaller ones stay finite in fp32."""
_FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Header:
    """Metadata of a weight file, and the shapes and dtypes of its tensors by name. The prefixes that trainers add to
    names (`state_dict.`, `module.`) are removed."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def kind(self) -> str:
        """The kind of the file, a key of `kinds.KINDS`."""
        return infer_kind(self.shapes)

    @property
    def parameters(self) -> int:
        """The number of parameters. Positional encodings are buffers and do not count."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not name.endswith(".pe"))

    @property
    def animateflow_metadata(self) -> dict[str, str]:
        """The fields under `animateflow.`, without that prefix; empty where another program wrote the file."""
        return {
            name.removeprefix(METADATA_PREFIX): value
            for name, value in self.metadata.items()
            if name.startswith(METADATA_PREFIX)
        }


def read_header(path: Path) -> Header:
    """The header of a weight file. A pickle has none; its tensors are loaded to get their shapes.

    Raises:
        UserError: no such file, not a weight file (the message says what it is), damaged, truncated, or a pickle that
            holds more than tensors.
    """
    if _is_pickle(path):
        tensors = _remove_prefixes(path, load_pickle(path))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)) for name, tensor in tensors.items()}
        return Header(path, {}, shapes, dtypes)
    parsed = parse_header(path)
    entries = _remove_prefixes(path, parsed.entries)
    shapes = {name: entry.shape for name, entry in entries.items()}
    return Header(path, parsed.metadata, shapes, {name: entry.dtype for name, entry in entries.items()})


def read_header_of_kind(path: Path, kind: str, not_weights: str | None = None) -> Header:
    """The header of a file of this kind with floating-point weights. Tensors whose names match the regular expression
    `not_weights` may have any dtype.

    Raises:
        UserError: see `read_header`; or a file of another kind (the message says which option takes it); or integer or
            quantised weights.
    """
    header = read_header(path)
    if header.kind != kind:
        raise wrong_kind_error(path, header.kind, kind)
    check_floats(header, (name for name in header.shapes if not_weights is None or not re.fullmatch(not_weights, name)))
    return header


def read_tensors(header: Header) -> dict[str, Tensor]:
    """The tensors of the file with this header, by name, on the CPU, in the file's dtype.

    Raises:
        UserError: they cannot be read, or one holds NaN, infinity or values above `LARGEST_WEIGHT`.
    """
    path = header.path
    if _is_pickle(path):
        tensors = {name: tensor.clone() for name, tensor in _remove_prefixes(path, load_pickle(path)).items()}
    else:
        try:
            tensors = _remove_prefixes(path, load_file(path))
        except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read: {error}.", "Its header is valid, its tensors are not.", "Download it again."
            ) from None
    check_numbers(path, tensors)
    return tensors


def check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: one of these tensors holds NaN, infinity or values above `LARGEST_WEIGHT`.
    """
    for name, tensor in tensors.items():
        # `not <=`, since every comparison with NaN is false.
        if tensor.is_floating_point() and tensor.numel() and not float(tensor.float().abs().max()) <= LARGEST_WEIGHT:
            raise UserError(
                f"{path} holds NaN, infinite or enormous values in {name}.",
                "The file is damaged, its training diverged, or it overflowed when it was converted to fp16.",
                "Download it again, or use another version of it.",
            )


def check_floats(header: Header, names: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of these tensors is not fp16, bf16, fp32 or fp64.
    """
    if wrong := [name for name in names if header.dtypes[name] not in _FLOATS]:
        raise UserError(
            f"{header.path} holds {wrong[0]} as {header.dtypes[wrong[0]]}, not as floating-point numbers.",
            "Quantised and integer weights are not supported.",
            "Use the fp16 or fp32 version of the file.",
        )


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with this metadata, and with the hash of the tensors in the metadata field
    `modelspec.hash_sha256` (SAI Model Spec). The file is replaced atomically.

    A path that ends in `.ckpt`, `.pt` or `.pth` gets what its readers expect there: a `torch.save` of the tensors,
    which holds no metadata.

    Raises:
        UserError: the file cannot be written. A file that was there before is kept.
    """
    on_cpu = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # follows the umask; save_file creates files that only the user can read
        if path.suffix.lower() in PICKLE_SUFFIXES:
            torch.save(on_cpu, partial)
        else:
            save_file(on_cpu, partial, metadata={"format": "pt", **metadata, HASH_KEY: "0x" + "0" * 64})
            partial.chmod(mode)
            _write_hash(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path} cannot be written: {reason}.",
            "What was there before is kept.",
            "Choose a folder that is writable and has enough space.",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def sha256_of_tensors(path: Path) -> str:
    """The hash of a safetensors file's tensors, as `modelspec.hash_sha256` holds it."""
    return "0x" + sha256_file(path, parse_header(path).data_start)


def _is_pickle(path: Path) -> bool:
    """Whether the file is a pickle; False means that it starts like safetensors.

    Raises:
        UserError: no file, not a weight file, or a pickle whose suffix is not that of a pickle.
    """
    if not path.is_file():
        found = f"{path} is a folder." if path.is_dir() else f"{path} does not exist."
        raise UserError(found, "A .safetensors file is needed here.", "Check the path.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(64)
    has_header = start[8:9] == b"{"
    length_fits = has_header and int.from_bytes(start[:8], "little") <= size - 8
    # The length of a safetensors header may start with the same bytes as a pickle.
    if starts_like_pickle(start) and path.suffix.lower() in PICKLE_SUFFIXES and not length_fits:
        return True
    if not has_header:
        raise _not_weights_error(path, start, size)
    return False


def _not_weights_error(path: Path, start: bytes, size: int) -> UserError:
    if size == 0:
        return UserError(f"{path} is empty.", "The download failed.", "Download it again.")
    for magic, (what, advice) in OTHER_FORMATS.items():
        if start.lstrip().startswith(magic):
            return UserError(f"{path} is {what}.", "Its name says something else.", advice)
    return UserError(
        f"{path} is not a safetensors file.", "Its first bytes are those of no known format.", "Download it again."
    )


def _remove_prefixes(path: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without the prefixes that trainers add to names, and without those of the official trainer that are
    not weights."""
    found = {}
    for full_name, value in entries.items():
        name = full_name.removeprefix("state_dict.").removeprefix("module.")
        if name.split(".")[0] in {"animatediff_config", "epoch", "global_step"}:
            continue
        if name in found:
            raise UserError(
                f"{path} is damaged: it holds {name} twice.", "Nothing was loaded from it.", "Download it again."
            )
        found[name] = value
    return found


def _write_hash(path: Path) -> None:
    """Writes the hash of the tensors into the header, and sorts the metadata: `save_file` writes it in any order, and
    the same weights should give the same bytes."""
    digest = sha256_of_tensors(path)
    with path.open("r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted({**header["__metadata__"], HASH_KEY: digest}.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the header must not grow"
        handle.seek(8)
        handle.write(text.ljust(length))
        handle.flush()
        os.fsync(handle.fileno())
