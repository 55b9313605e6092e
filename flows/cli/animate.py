"""`animateflow animate` and `animateflow benchmark`: what the weights do, to see and in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import (
    BaseOption,
    DeviceOption,
    OutOption,
    RecipeOption,
    SetOption,
    all_weighted,
    named,
    recipe_with,
    tell,
    weighted,
)


def animate(
    out: OutOption,
    prompt: Annotated[str | None, typer.Option(help="What to see, and how it moves.")] = None,
    base: BaseOption = None,
    motion_module: Annotated[
        Path | None, typer.Option(help="A motion module; without one every frame is a picture of its own.")
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
    recipe: RecipeOption = "pocket",
    device: DeviceOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Animates a base or personalised model: mp4, gif and a JSON row that says how.

    Sizes, steps, guidance and sampler come from the recipe: `--set animation.steps=40 --set animation.scheduler=euler`.

    Example: `animateflow animate --recipe sd15 --base toonyou.safetensors --motion-module runs/mine/motion
    --motion-lora zoom-in.safetensors:0.8 --prompt "a fox running through snow" --out runs/mine/fox`
    """
    from components.animate.config import AnimationModels
    from components.base.model import EmbeddingFile, LoraFile
    from flows.chain import steps

    whole = recipe_with(recipe, overrides, base)
    given = {"prompt": prompt, "seed": seed, "control_videos": tuple(control_video or ()) or None}
    changes = {name: value for name, value in given.items() if value is not None}
    model = whole.base
    if lora:
        files = all_weighted(lora)
        model = model.replace(loras=tuple(LoraFile(path=file.path, scale=file.scale) for file in files))
    if embedding:
        pairs = [(Path(text), None) if Path(text).exists() else named(text) for text in embedding]
        model = model.replace(embeddings=tuple(EmbeddingFile(path=path, token=token) for path, token in pairs))
    models = AnimationModels(
        base=model,
        motion_module=motion_module,
        motion_loras=all_weighted(motion_lora),
        domain_adapter=weighted(domain_adapter),
        controlnets=all_weighted(controlnet),
    )
    tell(steps.animation(whole.animation.replace(**changes), models, out, device), f"open {out}/animation.gif")


def benchmark(
    out: OutOption,
    recipe: RecipeOption = "pocket",
    motion_module: Annotated[
        Path | None, typer.Option(help="Your motion module, measured beside the recipe's.")
    ] = None,
    motion_lora: Annotated[Path | None, typer.Option(help="Your MotionLoRA on it.")] = None,
    domain_adapter: Annotated[Path | None, typer.Option(help="Your domain adapter.")] = None,
    device: DeviceOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Animates every prompt with every model and method of the recipe, scores them, and writes one HTML report.

    Example: `animateflow benchmark --recipe sd15 --motion-module runs/mine/motion --out runs/mine/scores`
    """
    from flows.chain import steps

    whole = recipe_with(recipe, overrides)
    config = whole.benchmark.with_weights(motion_module, motion_lora, domain_adapter)
    tell(steps.benchmark(config, out, device), f"open {out}/report.html")


def add_to(main: typer.Typer) -> None:
    main.command()(animate)
    main.command()(benchmark)
