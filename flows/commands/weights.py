"""`animateflow weights`: between diffusers' formats and the one that ComfyUI, A1111 and the official code read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import is_figure

app = typer.Typer(no_args_is_help=True, help="Weight files: export, import, info.")
Weights = Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A weight file or an artifact's folder.")]


@app.command()
def export(
    weights: Weights, out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")]
) -> None:
    """Writes the original format: one .safetensors file for ComfyUI, A1111 or the official code.

    Example: `animateflow weights export runs/mine/motion --out mine.safetensors`
    """
    from components.formats import export_original

    typer.echo(f"Wrote {export_original(weights, out)}")


@app.command("import")
def import_(
    weights: Weights, out: Annotated[Path, typer.Option("--out", "-o", help="The folder or file to write.")]
) -> None:
    """Reads the original format and writes what diffusers and this project load.

    Example: `animateflow weights import mm_sd_v15_v2.safetensors --out runs/v2`
    """
    from components.formats import import_original

    typer.echo(f"Wrote {import_original(weights, out)}")


@app.command()
def info(weights: Weights) -> None:
    """Says what a weight file is: kind, preset, rank, parameters, and what it was made from."""
    from components.formats import describe

    for name, value in describe(weights).items():
        shown = value if is_figure(value) else str(value)
        typer.echo(f"{name.replace('_', ' '):<24} {shown}")


def add_to(main: typer.Typer) -> None:
    main.add_typer(app, name="weights")
