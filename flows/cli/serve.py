"""`animateflow up` and `animateflow run`: the flows on a Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import SetOption, load_recipe
from flows.serving.starting import DEFAULT_RECIPE, FLOWS

StateOption = Annotated[
    Path | None, typer.Option(help="Folder of the server's state; .animateflow/ in the project by default.")
]


def up(
    port: Annotated[int | None, typer.Option(help="Port of the server; 4200 or a free one by default.")] = None,
    state: StateOption = None,
) -> None:
    """Starts a Prefect server and a worker on this machine and deploys every flow; Ctrl-C stops all.

    The server listens on 127.0.0.1 only.
    """
    import signal
    import sys

    from flows.serving.up import STATE, prefect_on_this_machine

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)  # a shell's background job ignores it otherwise
    try:
        with prefect_on_this_machine(port, (state or STATE).absolute()) as running:
            typer.echo(f"Prefect runs at {running.url}\n")
            typer.echo("In another terminal:")
            typer.echo("  animateflow run train-motion-module --watch")
            typer.echo("  animateflow run pipeline/pocket --set motion_module.train.steps=50")
            typer.echo(f"  PREFECT_API_URL={running.api} prefect deployment run train-motion-module/pocket --watch\n")
            typer.echo("Ctrl-C stops server and worker.")
            sys.stdout.flush()
            running.wait()
    except KeyboardInterrupt:
        typer.echo("Stopped.")


def run(
    flow: Annotated[str, typer.Argument(metavar="FLOW[/RECIPE]", help=f"One of: {', '.join(FLOWS)}.")],
    overrides: SetOption = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter of the flow, such as root=runs/mine."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for the end; exit code 1 if the run fails.")] = False,
    state: StateOption = None,
) -> None:
    """Starts a deployed flow on the running server; a bare flow name takes the pocket recipe.

    Example: `animateflow run train-motion-module --set motion_module.train.steps=50 --watch`
    """
    from flows.recipes.recipes import RECIPES
    from flows.serving.starting import start_run
    from flows.serving.up import STATE

    name, _, recipe = flow.partition("/")
    if overrides and (recipe or DEFAULT_RECIPE) in RECIPES:
        load_recipe(recipe or DEFAULT_RECIPE, overrides)  # a typing error shows now, not in the flow run
    start_run(name, recipe or DEFAULT_RECIPE, overrides or [], parameters or [], watch, state or STATE)


def register(main: typer.Typer) -> None:
    main.command()(up)
    main.command()(run)
