"""`animateflow cache`: builds, plans, verifies and inspects latent caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_prep.config import ShotType
from flows.cli.options import BaseOption, OutOption, RecipeOption, SetOption, load_recipe, print_artifact

app = typer.Typer(no_args_is_help=True, help="Latent caches: build, verify, inspect.")
SourceOption = Annotated[
    str,
    typer.Option(
        help="WebVid CSV, JSONL, Parquet, a folder of videos with .txt or .json captions, or a WebDataset .tar; a path "
        "or an address such as s3://bucket/table.csv."
    ),
]
VideosOption = Annotated[
    str | None, typer.Option(help="The folder, or its address, that the rows of a table refer to.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A latent cache.")]


@app.command()
def build(
    source: SourceOption,
    out: OutOption,
    videos: VideosOption = None,
    recipe: RecipeOption = "pocket",
    base: BaseOption = None,
    shots: Annotated[
        bool, typer.Option("--shots", help="Use the recipe's shot type: reference clips for a MotionLoRA.")
    ] = False,
    shot: Annotated[
        ShotType | None,
        typer.Option(help="The same with another shot type; its speed is set by `--set shots.move.zoom=20` and alike."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop clips whose rows or videos are no longer in the source.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch missing videos of a WebVid table from its contentUrl first.")
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Checks, decodes and encodes videos into a latent cache, or brings a cache up to date.

    After a stop, the same command encodes the missing shards. After a change of videos, captions or settings it encodes
    what changed; the old version stays until the new one is complete. A video that cannot be used is listed in
    `rejected.parquet` with the reason.

    Example: `animateflow cache build --source webvid.csv --videos videos/ --recipe sd15 --out runs/mine/cache`

    Reference clips for a MotionLoRA that tilts the camera up: `animateflow cache build --shot tilt-up
    --source clips.csv --videos clips/ --out runs/mine/tilt-up`

    On a cluster, with videos on S3: `animateflow cache build --source s3://bucket/webvid.csv --videos s3://bucket/videos
    --recipe sd15 --set cache.ray_address=auto --out /shared/cache`
    """
    from flows.chain import steps

    whole = load_recipe(recipe, overrides, base, uses=("shots" if shots or shot else "cache", "base"))
    config = whole.shots if shots or shot else whole.cache
    if shot:
        config = config.replace(shot_type=shot)
    print_artifact(
        steps.latent_cache(config, source, videos, whole.base, out, prune, download),
        f"animateflow cache inspect {out}",
    )


@app.command()
def plan(
    source: SourceOption,
    videos: VideosOption = None,
    recipe: RecipeOption = "sd15",
    base: BaseOption = None,
    sample: Annotated[int, typer.Option(min=1, help="Videos to decode for the measurement.")] = 32,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of the machine or cluster; this machine's.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of the machine or cluster; this machine's.")] = None,
    frames_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Of the VAE on one GPU, where that GPU is not here to be timed.")
    ] = None,
    read_mib_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Read rate of the videos' storage; unlimited by default.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Prints what a cache will cost before it is built: clips, hours, disk, GPU-hours and wall time.

    It decodes a random sample of the videos and times the VAE; nothing is written.

    Example: `animateflow cache plan --source webvid.csv --videos videos/ --gpus 8 --cpus 128 --frames-per-second 900`
    """
    from components.base.hub import resolve
    from data_prep.builder.estimate import estimate

    whole = load_recipe(recipe, overrides, base, uses=("cache", "base"))
    read = None if read_mib_per_second is None else read_mib_per_second * (1 << 20)
    typer.echo(
        str(
            estimate(whole.cache, source, videos, resolve(whole.base.path), sample, cpus, gpus, frames_per_second, read)
        )
    )


@app.command()
def verify(folder: Folder) -> None:
    """Reads every row: hash, shape, finite values. Exit code 1 where one is damaged."""
    from data_prep.cache.verify import verify as verify_cache

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
    from components.base.hub import resolve
    from data_prep.look.inspect import inspect_cache

    whole = load_recipe(recipe, None, base)
    page = inspect_cache(folder, resolve(whole.base.path), out or folder.with_name(f"{folder.name}-inspect.html"))
    typer.echo(f"Open {page}")


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="cache")
