"""`animateflow train`: the three stages, one command each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import BaseOption, CacheOption, OutOption, RecipeOption, SetOption, load_recipe, print_artifact

if TYPE_CHECKING:
    from components.stages.stage import Stage
    from flows.recipes.recipe import Recipe

app = typer.Typer(
    no_args_is_help=True,
    help="The three stages. After Ctrl-C, the same command resumes from the last checkpoint, on any number of workers.",
)
Adapter = Annotated[
    Path | None,
    typer.Option(
        help="The domain adapter, active and frozen during training; without it the stage trains without one."
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes that share every batch, one GPU each if there are GPUs, else CPUs. Same recipe, same result: "
        "train.batch_size is the total, and a multiple of their number. If one dies, all restart from the last "
        "checkpoint.",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Run the workers on this Ray cluster (`auto`: the one that this machine belongs to) instead of this "
        "machine. Its machines need this project, and --cache and --out under the same paths.",
    ),
]

PlanOption = Annotated[
    bool, typer.Option("--plan", help="Only print what it will cost: memory by part, hours, dollars. Trains nothing.")
]
GpuOption = Annotated[str, typer.Option("--gpu", help="With --plan: h200, h100, a100-80, a100-40, l40s, rtx-4090, …")]


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
    whole = load_recipe(recipe, overrides, base, uses=("domain_adapter", "base"))
    options = Options(cache, out, workers, ray_address, gpu if plan else None)
    next_step = f"animateflow train motion-module --recipe {recipe} --cache {cache} --domain-adapter {out} --out ..."
    _train(whole, whole.domain_adapter, options, {}, next_step)


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
    whole = load_recipe(recipe, overrides, base, uses=("motion_module", "base"))
    options = Options(cache, out, workers, ray_address, gpu if plan else None)
    next_step = f"animateflow animate --recipe {recipe} --motion-module {out} --prompt ... --out ..."
    _train(whole, whole.motion_module, options, {"domain_adapter": domain_adapter}, next_step)


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
    whole = load_recipe(recipe, overrides, base, uses=("motion_lora", "motion_module", "base"))
    options = Options(cache, out, workers, ray_address, gpu if plan else None)
    next_step = f"animateflow animate --motion-module {motion_module} --motion-lora {out}:1.0 --prompt ... --out ..."
    weights = {"motion_module": motion_module, "domain_adapter": domain_adapter}
    _train(whole, whole.motion_lora, options, weights, next_step)


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="train")


@dataclass(frozen=True)
class Options:
    """The options of every stage; `plan_for` is the GPU to plan for, None to train."""

    cache: Path
    out: Path
    workers: int
    ray_address: str | None
    plan_for: str | None


def _train(recipe: Recipe, stage: Stage, options: Options, weights: Mapping[str, Path | None], next_step: str) -> None:
    """Trains the stage and prints its artifact, or prints its plan."""
    from flows.chain import steps

    if options.plan_for is not None:
        for line in steps.plan(stage, recipe.base, options.cache, options.plan_for, recipe.motion_module):
            typer.echo(line)
        return
    artifact = steps.train(
        stage, recipe.base, options.cache, options.out, weights, None, options.workers, options.ray_address
    )
    print_artifact(artifact, next_step)
