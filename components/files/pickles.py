"""Weights in Python pickles (.ckpt, .pt, .pth, .bin), loaded without running any code in them.

`torch.load(weights_only=True)` loads tensors, containers and numbers and fails at anything else. A file at which it
fails is refused with the reason. It is never loaded in another way.
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
"""Limits on nested dicts and on their entries."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""First bytes of a zip archive, as torch.save writes it, and of a bare pickle."""


def starts_like_pickle(start: bytes) -> bool:
    """Whether a file with these first bytes is a zip archive or a pickle."""
    return start.startswith((ZIP, PICKLE))


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors by name, memory-mapped where torch can. Keys of nested dicts are joined by dots.

    Of a training checkpoint with a `state_dict` only that is returned.

    Raises:
        UserError: it holds more than tensors, is damaged, or holds no tensors.
    """
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors: dict[str, Tensor] = {}
    _collect_tensors(path, content, "", tensors)
    if not tensors:
        raise UserError(f"{path} is a pickle without tensors.", "It holds no weights.", "Check the path.")
    for name, tensor in tensors.items():
        _check_is_plain(path, name, tensor)
    _check_size(path, tensors)
    return tensors


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as handle:
                is_zip = handle.read(4) == ZIP
            if is_zip:
                _check_not_compressed(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # noqa: BLE001 - on a damaged pickle torch raises any type of error
        raise _unsafe_error(path, error) from None


def _check_not_compressed(path: Path) -> None:
    """torch.save never compresses, and a compressed archive could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        if packed := [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"{packed[0]!a} in it is compressed, which torch never does")


def _unsafe_error(path: Path, error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    cause = cause.encode("ascii", "backslashreplace").decode()
    reason = f"{type(error).__name__}: {cause[:200]}" if cause else type(error).__name__
    return UserError(
        f"{path} is a pickle that cannot be read safely ({reason}).",
        "A pickle can run code when it is loaded. Only tensors are read; this one is damaged or holds more.",
        "Download the .safetensors version, or convert it on a machine where you trust it.",
    )


def _collect_tensors(
    path: Path, value: Any, name: str, tensors: dict[str, Tensor], depth: int = 0, entries: int = 0
) -> int:
    """Adds the tensors in a nested dict to `tensors` and skips other values (an epoch, a name). Returns the number of
    dict entries visited so far."""
    if isinstance(value, Tensor):
        if name in tensors:
            raise _damaged(path, f"it holds {name!a} twice")
        tensors[name] = value.detach()
    elif isinstance(value, dict):
        for key, each in value.items():
            entries += 1
            if depth > DEPTH_MAX or entries > ENTRIES_MAX:
                raise _damaged(path, "its dicts are nested too deep, or in a circle")
            if not isinstance(key, (str, int)):
                raise _damaged(path, f"it has a {type(key).__name__} for a name")
            entries = _collect_tensors(path, each, f"{name}.{key}" if name else str(key), tensors, depth + 1, entries)
    return entries


def _check_is_plain(path: Path, name: str, tensor: Tensor) -> None:
    """Refuses, among others, a tensor with stride 0: with it a few bytes can claim any number of elements."""
    if not name.isprintable():
        raise _damaged(path, f"{name!a} is not a tensor name")
    plain = tensor.layout is torch.strided and not tensor.is_quantized and type(tensor) is Tensor
    plain = plain and tensor.device.type == "cpu"
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise _damaged(path, f"{name} is not a plain tensor")


def _check_size(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuses a file whose tensors share storage so often that together they claim far more bytes than it has."""
    claimed, size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()), path.stat().st_size
    if claimed > 3 * size + 1_000_000:  # a few tensors may share storage, as tied weights do
        raise _damaged(path, f"it has {size:,} bytes, and its tensors claim {claimed:,}")


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged: {what}.", "Nothing was loaded from it.", "Download it again.")
