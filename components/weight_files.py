"""Safetensors files as strangers hand them to us: is it really one, what does it hold, what does it say about itself.

Only the header is read here (8 bytes of length, then JSON), so a 7 GB file answers at once and nothing is unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.errors import UserError

METADATA_PREFIX = "animateflow."
MAX_HEADER_BYTES = 100_000_000
OTHER_FILES = {
    b"PK\x03\x04": (
        "a zip archive (a PyTorch .ckpt or .pt)",
        "Convert it to safetensors, or download the safetensors.",
    ),
    b"\x80": ("a Python pickle", "Pickles can run code when they are opened. Download the safetensors version."),
    b"version https://git-lfs": ("a git-lfs pointer, not the weights", "Run `git lfs pull` where it came from."),
    b"<": ("a web page, not weights", "The download needed a login or has moved: download it again in a browser."),
    b"{": ("a JSON text, not weights", "The download answered with an error message: open the file to read it."),
}
KINDS = {
    "motion-module": "a motion module",
    "motion-lora": "a MotionLoRA",
    "domain-adapter": "a domain adapter",
    "kohya-lora": "a LoRA of an image model (kohya format)",
    "lycoris": "a LyCORIS file (LoHa or LoKr)",
    "checkpoint": "a whole Stable Diffusion 1.x model",
    "sdxl-checkpoint": "a whole SDXL model",
    "unknown": "a file of unknown kind",
}


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file: `shapes` and `dtypes` by tensor name, `metadata` as written by its maker."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def kind(self) -> str:
        """One of `KINDS`, from the tensors' names."""
        return kind_of(self.shapes)

    @property
    def parameters(self) -> int:
        """Numbers that are learnt; positional encodings are not."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if not name.endswith(".pe"))

    def note(self, name: str) -> str | None:
        """What the file says about itself under `animateflow.<name>`; None when another tool wrote it."""
        return self.metadata.get(METADATA_PREFIX + name)


def read_header(path: Path) -> Header:
    """The header, checked against the file's size.

    Raises:
        UserError: no such file, not safetensors (naming what it is), damaged, or cut short.
    """
    if not path.is_file():
        found = f"{path} is a folder." if path.is_dir() else f"{path} does not exist."
        raise UserError(found, "A .safetensors weight file is needed here.", "Check the path.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(64)
        length = int.from_bytes(start[:8], "little")
        plausible = len(start) > 8 and length <= min(MAX_HEADER_BYTES, size - 8) and start[8:9] == b"{"
        if not plausible:
            raise _not_safetensors(path, start, size)
        handle.seek(8)
        text = handle.read(length)
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in entries.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: its header cannot be read.", "", "Download or make it again.") from None
    if 8 + length + end != size:
        raise UserError(
            f"{path} has {size:,} bytes and its header promises {8 + length + end:,}.",
            "The file was cut short or damaged on its way.",
            "Download or copy it again.",
        )
    return Header(path, metadata, shapes, dtypes)


def _not_safetensors(path: Path, start: bytes, size: int) -> UserError:
    if size == 0:
        return UserError(f"{path} is empty.", "The download failed.", "Download it again.")
    for magic, (what, advice) in OTHER_FILES.items():
        if start.lstrip().startswith(magic):
            return UserError(f"{path} is {what}.", "Weights are read from safetensors files only.", advice)
    return UserError(
        f"{path} is not a safetensors file.", "Its first bytes fit no weight format.", "Download it again."
    )


def kind_of(names: Mapping[str, object]) -> str:
    """The kind of weights that have tensors of these names, in our formats or others'; a key of `KINDS`."""
    has = {
        part: any(part in name for name in names)
        for part in ("motion_modules.", ".attentions.", "lora_A", "lora_down", "_lora.down", "hada_w", "lokr_w")
    }
    low_rank = has["lora_A"] or has["lora_down"] or has["_lora.down"]
    if has["hada_w"] or has["lokr_w"]:
        return "lycoris"
    if any(name.startswith(("lora_unet_", "lora_te_")) for name in names):
        return "kohya-lora"
    if has["motion_modules."]:
        if low_rank:
            return "motion-lora"
        return "checkpoint" if any(name.startswith("first_stage_model.") for name in names) else "motion-module"
    if low_rank and has[".attentions."]:
        return "domain-adapter"
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return "sdxl-checkpoint"
    if any(name.startswith("model.diffusion_model.input_blocks.") for name in names):
        return "checkpoint"
    return "unknown"


def read_weights(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors (on the CPU, in the file's dtype) of a checked safetensors file."""
    header = read_header(path)
    return header, load_file(path)


def write_weights(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, object]) -> None:
    """Writes safetensors whose metadata holds `notes` under `animateflow.<name>`; a note that is None is left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {METADATA_PREFIX + name: str(value) for name, value in notes.items() if value is not None}
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    save_file(plain, path, metadata={"format": "pt", **metadata})


def notes_of(header: Header) -> dict[str, str]:
    """All that `write_weights` noted, without the prefix."""
    return {
        name.removeprefix(METADATA_PREFIX): value
        for name, value in header.metadata.items()
        if name.startswith(METADATA_PREFIX)
    }
