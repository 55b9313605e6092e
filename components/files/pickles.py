"""Weights in Python pickles (.ckpt, .pt, .pth, .bin), read without running what is in them.

`torch.load(weights_only=True)` rebuilds tensors, containers and numbers, and stops at anything else. What it stops at
is refused with its reason, never loaded another way.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.errors import UserError

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
DEPTH_MAX, ENTRIES_MAX = 3, 1_000_000
ZIP, PICKLE = b"PK\x03\x04", b"\x80"


def looks_pickled(start: bytes) -> bool:
    """By a file's first bytes: a zip archive of torch's, or a bare pickle."""
    return start.startswith((ZIP, PICKLE))


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors by name, unread until they are used where torch can map the file; nested names are joined by dots.

    Of a training checkpoint (`state_dict` beside counters and optimizer state) the weights alone.

    Raises:
        UserError: it holds something that would have to be run, it is damaged, or no tensors are in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as handle:
                mappable = handle.read(4) == ZIP
            if mappable:
                _check_is_stored(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    except Exception as error:  # noqa: BLE001 - a parser on bytes of a stranger's: it fails in every way there is
        raise _refused(path, error) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    found: dict[str, Tensor] = {}
    _collect(path, content, "", found)
    if not found:
        raise UserError(f"{path} is a pickle without tensors.", "It holds no weights.", "Check the path.")
    for name, tensor in found.items():
        _check_is_plain(path, name, tensor)
    claimed, size = sum(tensor.numel() * tensor.element_size() for tensor in found.values()), path.stat().st_size
    if claimed > 3 * size + 1_000_000:  # a few weights may be shared, as tied ones are
        raise UserError(
            f"{path} is damaged: it has {size:,} bytes, and its tensors {claimed:,} by their names.",
            "Nothing was used of it.",
            "Download it again.",
        )
    return found


def _collect(path: Path, value: Any, name: str, found: dict[str, Tensor], depth: int = 0, seen: int = 0) -> int:
    """Numbers and texts beside tensors (epochs, names) are not weights and are passed over. Returns how many things it
    has seen, those seen before included."""
    if isinstance(value, Tensor):
        if name in found:
            raise UserError(f"{path} is damaged: it holds {name!a} twice.", "Nothing was used of it.", "Make it again.")
        found[name] = value.detach()
    elif isinstance(value, dict):
        for key, each in value.items():
            seen += 1
            if depth > DEPTH_MAX or seen > ENTRIES_MAX:
                raise UserError(
                    f"{path} is damaged: its contents are nested too deep, or in a circle.", "", "Download it again."
                )
            if not isinstance(key, (str, int)):
                raise UserError(
                    f"{path} is damaged: it has a {type(key).__name__} for a name.", "", "Download it again."
                )
            seen = _collect(path, each, f"{name}.{key}" if name else str(key), found, depth + 1, seen)
    return seen


def _check_is_plain(path: Path, name: str, tensor: Tensor) -> None:
    """A stride of zero lets a file of a few bytes claim any number of elements."""
    if not name.isprintable():
        raise UserError(
            f"{path} is damaged: {name!a} is no name of a tensor.", "Nothing was used.", "Download it again."
        )
    plain = tensor.layout is torch.strided and not tensor.is_quantized and type(tensor) is Tensor
    plain = plain and tensor.device.type == "cpu"
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise UserError(
            f"{path} is damaged: {name} is not a plain tensor.", "Nothing was used of it.", "Download it again."
        )


def _check_is_stored(path: Path) -> None:
    """torch writes its archives without compression; a compressed one could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        if packed := [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"{packed[0]!a} in it is compressed, which torch never does")


def _refused(path: Path, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    blamed = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    blamed = blamed.encode("ascii", "backslashreplace").decode()
    reason = f"{type(error).__name__}: {blamed[:200]}" if blamed else type(error).__name__
    return UserError(
        f"{path} is a pickle that cannot be read safely ({reason}).",
        "Pickles can run code when they are opened. Only tensors are read; this one is damaged or holds more.",
        "Download the .safetensors version, or convert it on a machine where you trust it.",
    )
