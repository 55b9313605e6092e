"""Names of tensors: the original AnimateDiff format (official code, ComfyUI, A1111) and diffusers', both ways.

| | original | diffusers |
|---|---|---|
| motion module | `motion_modules.j.temporal_transformer.` | `motion_modules.j.` |
| | `attention_blocks.{0,1}.to_q` | `attn{1,2}.to_q` |
| | `norms.{0,1}`, `ff_norm` | `norm1`, `norm2`, `norm3` |
| | `attention_blocks.{0,1}.pos_encoder.pe` | one `pos_embed.pe` a block |
| MotionLoRA | `attention_blocks.0.processor.to_out_lora.down.weight` | `unet.….attn1.to_out.0.lora_A.weight` |
| domain adapter | `attn1.processor.to_out_lora.up.weight` | `unet.….attn1.to_out.0.lora_B.weight` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from components.weight_files import KINDS, METADATA_PREFIX, notes_of, read_header, read_weights, write_weights
from infra.errors import UserError
from infra.hashing import sha256_file

if TYPE_CHECKING:
    from diffusers import MotionAdapter

PE = ".pos_encoder.pe"
DIFFUSERS_PE = ".pos_embed.pe"


def motion_name_to_original(name: str) -> str:
    """A motion module's tensor name in the original format; not for `pos_embed.pe`, which becomes two."""
    name = re.sub(r"(motion_modules\.\d+)\.", r"\1.temporal_transformer.", name, count=1)
    name = re.sub(r"\.attn([12])\.", lambda match: f".attention_blocks.{int(match[1]) - 1}.", name)
    name = name.replace(".norm3.", ".ff_norm.")
    return re.sub(r"(transformer_blocks\.\d+)\.norm([12])\.", lambda m: f"{m[1]}.norms.{int(m[2]) - 1}.", name)


def motion_name_from_original(name: str) -> str:
    """The inverse of `motion_name_to_original`."""
    name = name.replace(".temporal_transformer.", ".", 1)
    name = re.sub(r"\.attention_blocks\.([01])\.", lambda match: f".attn{int(match[1]) + 1}.", name)
    name = name.replace(".ff_norm.", ".norm3.")
    return re.sub(r"\.norms\.([01])\.", lambda match: f".norm{int(match[1]) + 1}.", name)


def motion_to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A motion module in the original format; both attention blocks carry positions, by which readers tell versions."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(DIFFUSERS_PE):
            for attention in ("attn1", "attn2"):
                out[motion_name_to_original(name.replace(DIFFUSERS_PE, f".{attention}{PE}"))] = tensor
        else:
            out[motion_name_to_original(name)] = tensor
    return out


def motion_from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A motion module in diffusers' names. Tensors outside motion modules and a `module.` prefix are dropped."""
    out: dict[str, Tensor] = {}
    for full in state:
        name = full.removeprefix("module.")
        if "motion_modules." not in name:
            continue
        renamed = motion_name_from_original(name)
        if renamed.endswith(PE):
            renamed = re.sub(rf"\.attn[12]{re.escape(PE)}$", DIFFUSERS_PE, renamed)
        out[renamed] = state[full]
    return out


def lora_to_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A domain adapter or MotionLoRA in the original format."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, side = re.fullmatch(r"unet\.(.*)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        attention, projection = re.fullmatch(r"(.*\.attn[12])\.(to_q|to_k|to_v|to_out)(?:\.0)?", layer).groups()  # type: ignore[union-attr]
        if "motion_modules." in attention:
            attention = motion_name_to_original(attention + ".").removesuffix(".")
        out[f"{attention}.processor.{projection}_lora.{'down' if side == 'A' else 'up'}.weight"] = tensor
    return out


def lora_from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `lora_to_original`; a name that fits no rule is kept, for the caller to refuse."""
    out: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix("module.").removeprefix("unet.")
        parts = re.fullmatch(r"(.*)\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight", name)
        if parts is None:
            out[full] = tensor
            continue
        layer, projection, side = parts.groups()
        layer = motion_name_from_original(layer + ".").removesuffix(".")
        projection = "to_out.0" if projection == "to_out" else projection
        out[f"unet.{layer}.{projection}.lora_{'A' if side == 'down' else 'B'}.weight"] = tensor
    return out


def adapter_from_original(path: Path, max_frames: int | None = None) -> tuple[MotionAdapter, dict[str, str]]:
    """A motion module and its notes from a file in the original format; its shape is read off its tensors.

    Raises:
        UserError: not a motion module, or tensors missing.
    """
    from components.motion_module import build_adapter

    header, tensors = read_weights(path)
    if header.kind != "motion-module":
        raise UserError(
            f"{path} is {KINDS[header.kind]}, not a motion module.", "", "Check the path given as motion module."
        )
    state = motion_from_original(tensors)
    return build_adapter(settings_from(state, header.metadata), state, path, max_frames), notes_of(header)


def settings_from(state: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The `MotionAdapter` settings of a motion module in diffusers' names.

    Widths, layers, mid block and positions are in the tensors' shapes; heads and groups are not, so our exports carry
    them as notes, and a file without them is taken for an official one (8 heads, 32 groups).
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    widths: list[int] = []
    layers: list[int] = []
    while (first := f"down_blocks.{len(widths)}.motion_modules.0.norm.weight") in shapes:
        block = f"down_blocks.{len(widths)}.motion_modules."
        layers.append(len({name.split(".")[3] for name in shapes if name.startswith(block)}))
        widths.append(shapes[first][0])
    heads = [int(each) for each in metadata.get(METADATA_PREFIX + "heads", "8").split(",")]
    lengths = [shape[1] for name, shape in shapes.items() if name.endswith(DIFFUSERS_PE)]
    return {
        "block_out_channels": widths,
        "motion_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "motion_num_attention_heads": heads[0] if len(set(heads)) == 1 else heads,
        "motion_norm_num_groups": int(metadata.get(METADATA_PREFIX + "norm_groups", 32)),
        "motion_max_seq_length": lengths[0] if lengths else 32,
        "use_motion_mid_block": any(name.startswith("mid_block.") for name in shapes),
    }


def shape_notes(adapter: MotionAdapter) -> dict[str, object]:
    """What `settings_from` cannot read off the tensors."""
    heads = adapter.config.motion_num_attention_heads
    return {
        "heads": ",".join(str(each) for each in heads) if isinstance(heads, (tuple, list)) else heads,
        "norm_groups": adapter.config.motion_norm_num_groups,
        "max_frames": adapter.config.motion_max_seq_length,
    }


def weight_file(path: Path) -> Path:
    """The weight file that an artifact's folder, a MotionAdapter folder or a file's own path stands for.

    Raises:
        UserError: no weights there.
    """
    if path.is_dir():
        names = ("diffusion_pytorch_model.safetensors", "domain_adapter.safetensors", "motion_lora.safetensors")
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no weights of ours.", f"Looked for {', '.join(names)}.", "Check the path.")
        return found[0]
    return path


def export_original(source: Path, target: Path) -> Path:
    """Writes a motion module, domain adapter or MotionLoRA of ours in the original format, notes included.

    Raises:
        UserError: nothing that has an original format.
    """
    if source.is_dir() and (source / "config.json").is_file():
        from components.motion_module import load_motion_module

        adapter, notes = load_motion_module(source)
        write_weights(target, motion_to_original(adapter.state_dict()), {**notes, **shape_notes(adapter)})
        return target
    header, state = read_weights(weight_file(source))
    if header.kind in ("domain-adapter", "motion-lora") and all(".lora_" in name for name in state):
        write_weights(target, lora_to_original(state), notes_of(header))
        return target
    raise UserError(
        f"{source} is {KINDS[header.kind]}" + (" in the original format already." if _is_original(state) else "."),
        "Motion modules (as folders), domain adapters and MotionLoRAs in diffusers' format can be exported.",
        "Name one of those.",
    )


def import_original(source: Path, target: Path) -> Path:
    """Writes a file in the original format in diffusers': a motion module as a folder, a LoRA as a file.

    Raises:
        UserError: not in the original format.
    """
    header, state = read_weights(source)
    if not _is_original(state):
        raise UserError(
            f"{source} is {KINDS[header.kind]}, and not in the original format.", "", "Name a file in that format."
        )
    if header.kind == "motion-module":
        from components.motion_module import save_motion_module

        adapter, notes = adapter_from_original(source)
        save_motion_module(target, adapter, {**notes, **shape_notes(adapter)})
    else:
        write_weights(target, lora_from_original(state), {"stage": header.kind, **notes_of(header)})
    return target


def _is_original(state: Mapping[str, object]) -> bool:
    return any(".temporal_transformer." in name or ".processor.to_" in name for name in state)


def describe(path: Path) -> dict[str, Any]:
    """What a weight file is, from its header alone: for `animateflow weights info`.

    Keys: path, kind, title, format (original, diffusers or other), preset, rank, tensors, parameters, dtypes,
    metadata, sha256.

    Raises:
        UserError: no readable weight file there.
    """
    file = weight_file(path)
    header = read_header(file)
    original = _is_original(header.shapes)
    ours = header.kind in ("motion-module", "domain-adapter", "motion-lora")
    return {
        "path": str(file),
        "kind": header.kind,
        "title": KINDS[header.kind],
        "format": ("original" if original else "diffusers") if ours else "other",
        "preset": header.note("preset") or _guess_preset(header.kind, header.shapes),
        "rank": _rank(header.shapes),
        "tensors": len(header.shapes),
        "parameters": header.parameters,
        "dtypes": sorted(set(header.dtypes.values())),
        "metadata": dict(sorted(header.metadata.items())),
        "sha256": sha256_file(file),
    }


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    downs = (shape[0] for name, shape in shapes.items() if re.search(r"(lora_A|lora_down|_lora\.down)\.weight$", name))
    return next(downs, None)


def _guess_preset(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """v1 and v3 differ in nothing but the number of positions, as every reader of these files has it."""
    if kind != "motion-module":
        return None
    names = {motion_name_from_original(name.removeprefix("module.")): shape for name, shape in shapes.items()}
    widths = [names.get(f"down_blocks.{i}.motion_modules.0.norm.weight", (0,))[0] for i in range(4)]
    if widths == [320, 640, 1280, 0]:
        return "sdxl-beta"
    if widths != [320, 640, 1280, 1280]:
        return None
    if any(name.startswith("mid_block.") for name in names):
        return "v2"
    lengths = {shape[1] for name, shape in names.items() if name.endswith("pe")}
    return "v1" if lengths == {24} else "v3"
