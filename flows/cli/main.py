"""`animateflow`: the command line. It calls the functions in `flows.chain.steps` and needs no Prefect server.

Exit codes: 0 done; 1 the work failed; 2 the input or the usage was wrong; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flows.cli import animate, base, cache, machine, pocket, serve, train, weights
from infra.errors import AnimateflowError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="AnimateDiff training and evaluation as a data workflow: video, latents, weights, animations, scores.\n\n"
    "Start with `animateflow demo`: the whole chain in minutes on a computer without a GPU.",
)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more while working.")] = False,
) -> None:
    from infra.logs import setup_logging
    from infra.runtime import quiet_environment

    quiet_environment()
    setup_logging(verbose)


for commands in (pocket, machine, cache, base, train, animate, weights, serve):
    commands.register(app)


def main() -> None:
    """The console script. A user's mistake ends in one message on stderr, without a traceback."""
    try:
        app()
    except AnimateflowError as error:
        lines = (error.found, error.meaning, error.next_step)
        sys.stderr.write("\n".join(("Error: " + " ".join(line for line in lines if line), "")))
        sys.exit(error.exit_code)
    except SystemExit as ending:
        if ending.code == 130:
            sys.stderr.write("Stopped. Run the same command again to resume.\n")
        raise


if __name__ == "__main__":
    main()
