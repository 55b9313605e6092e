"""`animateflow doctor`: what this machine has and lacks."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Says what this machine has and lacks, and what to do about it. Exit code 1 where something needed is missing."""
    from flows.cli.doctor import examine

    findings = list(examine())
    for finding in findings:
        typer.echo(finding.line())
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
    typer.echo("\nAll that is needed is here.")


def register(main: typer.Typer) -> None:
    main.command()(doctor)
