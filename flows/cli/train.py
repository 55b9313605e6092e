"""`animateflow train`: the three stages, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import BaseOption, CacheOption, OutOption, RecipeOption, SetOption, recipe_with, tell

if TYPE_CHECKING:
    from flows.recipes.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    help="The three stages. Stopped by Ctrl-C, the same command goes on from the last checkpoint, on any number of "
    "workers.",
)
Adapter = Annotated[
    Path | None,
    typer.Option(
        help="The domain adapter that is active and frozen meanwhile; without it the stage trains without one."
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes that share every batch, a GPU each where there are any, else CPUs. Same recipe, same result: "
        "train.batch_size is that of all together, and a multiple of their number. One that dies is replaced, and all "
        "go on from the last checkpoint.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Take the workers from this Ray cluster (`auto`: the one that this machine belongs to) instead of this "
        "machine. Its machines need this project, and the same paths to --cache and --out.",
    ),
]

PlanOption = Annotated[
    bool, typer.Option("--plan", help="Only say what it will cost: memory by part, hours, dollars. Trains nothing.")
]
GpuOption = Annotated[str, typer.Option("--gpu", help="With --plan: h200, h100, a100-80, a100-40, l40s, rtx-4090, …")]


def _tell_plan(stage: str, recipe: Recipe, cache: Path, gpu: str) -> None:
    from flows.chain import steps

    for line in steps.plan(stage, recipe, cache, gpu):
        typer.echo(line)


@app.command()
def domain_adapter(
    cache: CacheOption,
    out: OutOption,
    recipe: RecipeOption = "pocket",
    base: BaseOption = None,
    overrides: SetOption = None,
    workers: Workers = 1,
    ray_address: RayAddress = None,
    plan: PlanOption = False,
    gpu: GpuOption = "h100",
) -> None:
    """Stage 1: a LoRA on the image layers that takes up the look of the training videos, from single frames.

    Example: `animateflow train domain-adapter --recipe sd15 --cache runs/mine/cache --out runs/mine/adapter`
    """
    from flows.chain import steps

    whole = recipe_with(recipe, overrides, base)
    if plan:
        _tell_plan("domain-adapter", whole, cache, gpu)
        return
    tell(
        steps.domain_adapter(whole.domain_adapter, whole.base, cache, out, None, workers, ray_address),
        f"animateflow train motion-module --recipe {recipe} --cache {cache} --domain-adapter {out} --out ...",
    )


@app.command()
def motion_module(
    cache: CacheOption,
    out: OutOption,
    domain_adapter: Adapter = None,
    recipe: RecipeOption = "pocket",
    base: BaseOption = None,
    overrides: SetOption = None,
    workers: Workers = 1,
    ray_address: RayAddress = None,
    plan: PlanOption = False,
    gpu: GpuOption = "h100",
) -> None:
    """Stage 2: the temporal transformer that moves every personalised version of the base model.

    Example: `animateflow train motion-module --recipe sd15 --cache runs/mine/cache --domain-adapter runs/mine/adapter
    --out runs/mine/motion --set motion_module.train.steps=20000 --workers 4`
    """
    from flows.chain import steps

    whole = recipe_with(recipe, overrides, base)
    if plan:
        _tell_plan("motion-module", whole, cache, gpu)
        return
    tell(
        steps.motion_module(whole.motion_module, whole.base, cache, domain_adapter, out, None, workers, ray_address),
        f"animateflow animate --recipe {recipe} --motion-module {out} --prompt ... --out ...",
    )


@app.command()
def motion_lora(
    cache: CacheOption,
    out: OutOption,
    motion_module: Annotated[Path, typer.Option(help="The motion module to adapt.")],
    domain_adapter: Adapter = None,
    recipe: RecipeOption = "pocket",
    base: BaseOption = None,
    overrides: SetOption = None,
    workers: Workers = 1,
    ray_address: RayAddress = None,
    plan: PlanOption = False,
    gpu: GpuOption = "h100",
) -> None:
    """Stage 3: a LoRA on the temporal attention that learns one shot type from a few reference clips.

    The cache is one of that shot type: `animateflow cache build --shots --set shots.shot_type=zoom-in ...`
    """
    from flows.chain import steps

    whole = recipe_with(recipe, overrides, base)
    if plan:
        _tell_plan("motion-lora", whole, cache, gpu)
        return
    tell(
        steps.motion_lora(
            whole.motion_lora, whole.base, cache, motion_module, domain_adapter, out, None, workers, ray_address
        ),
        f"animateflow animate --motion-module {motion_module} --motion-lora {out}:1.0 --prompt ... --out ...",
    )


def add_to(main: typer.Typer) -> None:
    main.add_typer(app, name="train")
