"""`animateflow weights`: converts between diffusers' formats and the one of ComfyUI, A1111 and the official code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.files.kinds import DType, Program
from components.motion.presets import GroupNormMode, PresetName
from infra.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Weight files: export, import, info.")
Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A weight file or an artifact's folder.")]


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; for diffusers, the folder.")],
    weights: Annotated[
        Path | None, typer.Argument(metavar="WEIGHTS", help="A weight file or an artifact's folder.")
    ] = None,
    program: Annotated[
        Program,
        typer.Option("--for", help="The program that shall read it; the official code wants --out FILE.ckpt."),
    ] = "comfyui",
    fresh: Annotated[
        PresetName | None, typer.Option(help="Write an untrained motion module of this preset instead.")
    ] = None,
    base: Annotated[
        str, typer.Option(help="With --fresh: sd15, sdxl, or a diffusers folder; only its UNet's sizes count.")
    ] = "sd15",
    seed: Annotated[int, typer.Option(help="With --fresh: seed of the random weights.")] = 0,
    dtype: Annotated[DType | None, typer.Option(help="Convert the weights; unchanged by default.")] = None,
) -> None:
    """Writes weights for ComfyUI, A1111, the official code or diffusers.

    Examples: `animateflow weights export runs/mine/motion --out mine.safetensors`,
    `animateflow weights export runs/mine/zoom-in --for a1111 --out zoom-in.safetensors`, or
    `animateflow weights export --fresh v2 --base sd15 --out fresh_v2.safetensors`
    """
    from components.convert import formats
    from components.motion.module import MotionModuleConfig

    if (weights is None) == (fresh is None):
        raise UserError(
            "Either weights or --fresh PRESET must be given, and not both.",
            "Weights are converted; --fresh makes untrained ones.",
            "Try `animateflow weights export --fresh v3 --out fresh.safetensors`.",
        )
    if fresh is not None:
        config = MotionModuleConfig(preset=fresh)
        typer.echo(f"Wrote {formats.export_fresh(config, base, out, seed, dtype)}")
    elif weights is not None:
        typer.echo(f"Wrote {formats.export_weights(weights, out, dtype, program)}")


@app.command("import")
def import_(
    weights: Weights,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder or file to write.")],
    preset: Annotated[
        PresetName | None, typer.Option(help="Preset of a motion module whose file does not say it.")
    ] = None,
    group_norm: Annotated[
        GroupNormMode | None,
        typer.Option(help="Its temporal transformers' norm: pooled if it was trained with stock diffusers."),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Longest window of a motion module; its positions are computed again.")
    ] = None,
) -> None:
    """Reads the original format and writes what diffusers and this project load, tensors bit for bit.

    Example: `animateflow weights import mm_sd_v15_v2.safetensors --out runs/v2`
    """
    from components.convert.formats import import_original

    typer.echo(f"Wrote {import_original(weights, out, preset, group_norm, max_frames)}")


@app.command()
def info(
    weights: Weights,
    hashes: Annotated[
        bool, typer.Option("--hash", help="Read the whole file: its SHA256, and whether its tensors are intact.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
) -> None:
    """Prints what a weight file is, from its header: kind, preset, norms, rank, hash and metadata."""
    import json

    from components.convert.info import describe

    described = describe(weights, hashes)
    if as_json:
        typer.echo(json.dumps(described, indent=2, sort_keys=True))
        return
    metadata = described.pop("metadata")
    for name, value in described.items():
        if value is not None:
            shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
            typer.echo(f"{name.replace('_', ' '):<18} {shown}")
    for name, value in metadata.items():
        typer.echo(f"  {name:<40} {value if len(value) <= 200 else value[:197] + '...'}")


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="weights")
