"""Calls the command line as the console script does, inside this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from flows.cli.main import main


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def animateflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["animateflow", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        else:
            code = 0
        captured = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call
