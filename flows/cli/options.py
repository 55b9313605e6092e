"""Options that several commands share, and what parses and prints for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infra.errors import UserError

if TYPE_CHECKING:
    from components.animate.config import WeightedFile
    from flows.recipes.recipe import Recipe
    from infra.artifacts.artifacts import Artifact

RecipeOption = Annotated[
    str, typer.Option("--recipe", "-r", help="The config to start from: pocket, pocket-full or sd15.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change one field of the recipe; may be repeated."),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The folder to write; a finished artifact there is kept.")]
CacheOption = Annotated[Path, typer.Option("--cache", help="A latent cache, made by `animateflow cache build`.")]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        "--base", help="Base model instead of the recipe's: a diffusers folder, a .safetensors file or a hub id."
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    Literal["auto", "fp32", "fp16", "bf16"] | None,
    typer.Option(help="Of all networks; auto is fp16 on CUDA and fp32 on a CPU. The recipe's by default."),
]


def load_recipe(
    name: str, overrides: list[str] | None, base: Path | None = None, uses: Sequence[str] | None = None
) -> Recipe:
    """The recipe with every `--set`, and another base model where one is given. `uses` are the parts of the recipe that
    the command looks at; none stands for all.

    Raises:
        UserError: no such recipe, a wrong override, or one of a part that the command does not use.
    """
    from flows.recipes.recipes import recipe_named
    from infra.config import apply_overrides

    recipe = recipe_named(name)
    others = set() if uses is None else set(type(recipe).model_fields) - set(uses)
    for text in overrides or []:
        part = text.partition("=")[0].strip().split(".")[0]
        if uses is not None and part in others:
            raise UserError(
                f"--set {text} has no effect here.",
                f"This command uses {', '.join(uses)} of the recipe, and {part} is another part.",
                f"Set a field of {uses[0]}, or leave it out.",
            )
    given: list[str | tuple[str, object]] = list(overrides or [])
    if base is not None:
        given.insert(0, ("base.path", base))
    return apply_overrides(recipe, given)


def parse_weighted(text: str | None, scale: float = 1.0) -> WeightedFile | None:
    """`FILE:0.8` to the file and its scale; without `:scale` the default scale.

    Raises:
        UserError: the text is not an existing file, and what follows its last colon is not a number.
    """
    from components.animate.config import WeightedFile

    if text is None:
        return None
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return WeightedFile(path=Path(text), scale=scale)
    try:
        return WeightedFile(path=Path(path), scale=float(number))
    except ValueError:
        raise UserError(
            f"{text!r} is neither a file nor FILE:SCALE.",
            f"{number!r} is no number.",
            "Write for example --motion-lora zoom-in.safetensors:0.8.",
        ) from None


def parse_weighted_files(texts: list[str] | None) -> tuple[WeightedFile, ...]:
    """`parse_weighted` of each."""
    return tuple(file for text in texts or () if (file := parse_weighted(text)) is not None)


def parse_embedding(text: str) -> tuple[Path, str | None]:
    """`FILE:WORD` to the file and its word, `FILE` to the file alone."""
    path, colon, word = text.rpartition(":")
    return (Path(path), word) if colon and not Path(text).exists() else (Path(text), None)


def print_artifact(artifact: Artifact, next_step: str = "") -> None:
    """Prints the artifact's folder, counts and metrics, and the command to run next."""
    typer.echo(f"{artifact.kind}  {artifact.folder}")
    figures = {
        **artifact.counts,
        **{name: value for name, value in artifact.metrics.items() if isinstance(value, (int, float))},
    }
    for name, count in artifact.metrics.get("changes", {}).items():
        figures[f"changed.{name}"] = count
    for name, value in figures.items():
        typer.echo(
            f"  {name.replace('_', ' '):<28} {value:.6g}"
            if isinstance(value, float)
            else f"  {name.replace('_', ' '):<28} {value}"
        )
    if next_step:
        typer.echo(f"Next: {next_step}")
