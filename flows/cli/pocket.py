"""`animateflow demo` and `animateflow pocket`: a small model and drawn clips, for two CPU cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import SetOption, load_recipe

pocket = typer.Typer(no_args_is_help=True, help="The pocket world: its clips and its weights.")


def demo(
    root: Annotated[Path, typer.Option("--out", "-o", help="The folder for all artifacts.")] = Path("runs/demo"),
    overrides: SetOption = None,
) -> None:
    """The whole pipeline on the pocket recipe: draw clips, encode, train three stages, animate, score.

    A few minutes on two cores, no GPU, no network. Run again, it makes only what is missing.
    """
    import time

    from flows.chain.workspace import STEPS, Workspace

    workspace = Workspace(load_recipe("pocket", overrides), root)
    started = time.monotonic()
    artifact = None
    for number, (title, make) in enumerate(STEPS, 1):
        typer.echo(f"[{number}/{len(STEPS)}] {title}")
        begun = time.monotonic()
        artifact = make(workspace)
        typer.echo(f"      {artifact.folder}  ({time.monotonic() - begun:.0f} s)")
    assert artifact is not None
    typer.echo(f"\nDone in {time.monotonic() - started:.0f} s. The report, with every animation and score:")
    typer.echo(f"  {(artifact.folder / 'report.html').resolve()}")


@pocket.command()
def clips(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write: videos/ and clips.csv.")],
    count: Annotated[int, typer.Option(min=1, help="Clips to draw.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same clips.")] = 0,
    domain: Annotated[str, typer.Option(help="clean, or stock: watermark, blur and compression.")] = "stock",
) -> None:
    """Draws captioned clips whose motion is known, as H.264 files with a CSV in WebVid's columns.

    Example: `animateflow pocket clips --count 200 --out clips`, then
    `animateflow cache build --source clips/clips.csv --videos clips/videos --out cache`
    """
    from infra.errors import UserError
    from infra.pocket.clips import DOMAINS, write_clips

    if domain not in DOMAINS:
        raise UserError(f"No domain {domain!r}.", f"Domains: {', '.join(DOMAINS)}.", "Pass one of them to --domain.")
    try:
        typer.echo(f"Wrote {count} clips: {write_clips(out, count, seed, domain=domain)}")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}.", "", "Name another --out folder.") from None


@pocket.command()
def build(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for everything; the weights end in OUT/weights.")
    ],
    overrides: SetOption = None,
) -> None:
    """Trains everything that ships in `infra/pocket/weights/` from nothing: two to three hours on two cores.

    VAE, base model, CLIP, two personalised models, then the three stages on drawn clips. After a stop, the same command
    makes what is missing. Fields of `models` are those of the image models, all others those of the recipe pocket-full.

    A short try: `animateflow pocket build --out world --set models.base_steps=20 --set motion_module.train.steps=20`
    """
    from flows.cli.pocket_weights import build_pocket_weights
    from infra.config import apply_overrides
    from infra.pocket.build import PocketModels

    given = overrides or []
    of_models = [text.removeprefix("models.") for text in given if text.startswith("models.")]
    models = apply_overrides(PocketModels(), of_models)
    weights = build_pocket_weights(models, [text for text in given if not text.startswith("models.")], out)
    typer.echo(f"Weights: {weights}")


def register(main: typer.Typer) -> None:
    main.command()(demo)
    main.add_typer(pocket, name="pocket")
