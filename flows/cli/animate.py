"""`animateflow animate` and `animateflow benchmark`: animations from weights, and their scores.

`animate` is long because of its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import (
    BaseOption,
    DeviceOption,
    OutOption,
    PrecisionOption,
    RecipeOption,
    SetOption,
    load_recipe,
    parse_embedding,
    parse_weighted,
    parse_weighted_files,
    print_artifact,
)

if TYPE_CHECKING:
    from components.base.model import BaseModel


def animate(
    out: OutOption,
    prompt: Annotated[str | None, typer.Option(help="What to show, and how it moves.")] = None,
    base: BaseOption = None,
    motion_module: Annotated[
        Path | None, typer.Option(help="A motion module; without one the frames are independent images.")
    ] = None,
    motion_lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE:SCALE", help="A MotionLoRA; may be repeated.")
    ] = None,
    domain_adapter: Annotated[
        str | None, typer.Option(metavar="FILE:ALPHA", help="The domain adapter at a strength; none by default.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE:SCALE", help="A LoRA of the base model (kohya format); may be repeated."),
    ] = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WORD]", help="A textual-inversion embedding and its word; may be repeated."),
    ] = None,
    controlnet: Annotated[
        list[str] | None, typer.Option(metavar="DIR:SCALE", help="A ControlNet's diffusers folder; may be repeated.")
    ] = None,
    control_video: Annotated[
        list[Path] | None,
        typer.Option(help="What a ControlNet follows: a video or a folder of pictures; one for each ControlNet."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same animation.")] = None,
    precision: PrecisionOption = None,
    recipe: RecipeOption = "pocket",
    device: DeviceOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Animates a base or personalised model; writes mp4, gif and a JSON row with all settings.

    Sizes, steps, guidance and sampler come from the recipe: `--set animation.steps=40 --set animation.scheduler=euler`.

    Example: `animateflow animate --recipe sd15 --base toonyou.safetensors --motion-module runs/mine/motion
    --motion-lora zoom-in.safetensors:0.8 --prompt "a fox running through snow" --out runs/mine/fox`
    """
    from components.animate.config import AnimationModels
    from flows.chain import steps

    whole = load_recipe(recipe, overrides, base, uses=("animation", "base"))
    given = {"prompt": prompt, "seed": seed, "control_videos": tuple(control_video or ()) or None}
    given["precision"] = precision
    changes = {name: value for name, value in given.items() if value is not None}
    models = AnimationModels(
        base=_with_files(whole.base, lora, embedding),
        motion_module=motion_module,
        motion_loras=parse_weighted_files(motion_lora),
        domain_adapter=parse_weighted(domain_adapter),
        controlnets=parse_weighted_files(controlnet),
    )
    print_artifact(
        steps.animation(whole.animation.replace(**changes), models, out, device), f"open {out}/animation.gif"
    )


def benchmark(
    out: OutOption,
    recipe: RecipeOption = "pocket",
    motion_module: Annotated[
        Path | None, typer.Option(help="Your motion module, measured besides the recipe's.")
    ] = None,
    motion_lora: Annotated[Path | None, typer.Option(help="Your MotionLoRA on it.")] = None,
    domain_adapter: Annotated[Path | None, typer.Option(help="Your domain adapter.")] = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Animates every prompt with every model and method of the recipe, scores them, and writes one HTML report.

    Example: `animateflow benchmark --recipe sd15 --motion-module runs/mine/motion --out runs/mine/scores`
    """
    from flows.chain import steps

    whole = load_recipe(recipe, overrides, uses=("benchmark",))
    config = whole.benchmark.with_weights(motion_module, motion_lora, domain_adapter)
    if precision is not None:
        config = config.replace(animation__precision=precision)
    print_artifact(steps.benchmark(config, out, device), f"open {out}/report.html")


def register(main: typer.Typer) -> None:
    main.command()(animate)
    main.command()(benchmark)


def _with_files(base: BaseModel, loras: list[str] | None, embeddings: list[str] | None) -> BaseModel:
    """The base model with the LoRAs and embeddings of the command line."""
    from components.base.model import EmbeddingFile, LoraFile

    if loras:
        files = parse_weighted_files(loras)
        base = base.replace(loras=tuple(LoraFile(path=file.path, scale=file.scale) for file in files))
    if embeddings:
        pairs = [parse_embedding(text) for text in embeddings]
        base = base.replace(embeddings=tuple(EmbeddingFile(path=path, token=token) for path, token in pairs))
    return base
