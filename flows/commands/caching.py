"""`animateflow cache`: videos to latents, and looking at what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import BaseOption, OutOption, RecipeOption, SetOption, recipe_with, tell

app = typer.Typer(no_args_is_help=True, help="Latent caches: build, verify, inspect.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A latent cache.")]


@app.command()
def build(
    source: Annotated[Path, typer.Option(help="WebVid CSV, JSONL, Parquet, or a folder of videos with .txt captions.")],
    out: OutOption,
    videos: Annotated[Path | None, typer.Option(help="The folder that the rows of a table refer to.")] = None,
    recipe: RecipeOption = "pocket",
    base: BaseOption = None,
    shots: Annotated[
        bool, typer.Option("--shots", help="Use the recipe's shot type: reference clips for a MotionLoRA.")
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Checks, decodes and encodes videos into a latent cache.

    Stopped in the middle, the same command goes on with the clips that are missing. A video that cannot be used is
    listed in `rejected.parquet` with the reason.

    Example: `animateflow cache build --source webvid.csv --videos videos/ --recipe sd15 --out runs/mine/cache`
    """
    from flows import steps

    whole = recipe_with(recipe, overrides, base)
    tell(
        steps.latent_cache(whole.shots if shots else whole.cache, source, videos, whole.base, out),
        f"animateflow cache inspect {out}",
    )


@app.command()
def verify(folder: Folder) -> None:
    """Reads every row: hash, shape, finite values. Exit code 1 where one is damaged."""
    from data_prep.verify import verify as verify_cache

    verification = verify_cache(folder)
    typer.echo(str(verification))
    if not verification.ok:
        raise typer.Exit(1)


@app.command()
def inspect(
    folder: Folder,
    recipe: RecipeOption = "pocket",
    base: BaseOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file to write.")] = None,
) -> None:
    """Writes one HTML page: a contact sheet of decoded latents, distributions, and the rejected clips.

    `--base` must be the model whose VAE encoded the cache.
    """
    from components.base_model import resolve
    from data_prep.inspect import inspect_cache

    whole = recipe_with(recipe, None, base)
    page = inspect_cache(folder, resolve(whole.base.path), out or folder.with_name(f"{folder.name}-inspect.html"))
    typer.echo(f"Open {page}")


def add_to(main: typer.Typer) -> None:
    main.add_typer(app, name="cache")
