"""The process that does the checks: a request a line on its standard input, a row a line on its standard output.

A check that fails ends the process, and whoever started it starts another for the next one: that frees the GPU's memory
for certain, and leaves no broken CUDA context behind. One that runs past its time ends it too.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any, TextIO

from infra import runtime
from infra.gpu_check.context import Context
from infra.gpu_check.rows import Row
from infra.gpu_check.sizes import FULL, REHEARSAL


def main() -> None:
    """`rehearse` as its only argument: small, on the CPU."""
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    sys.excepthook = _told_to(replies)
    runtime.quiet_environment()
    rehearse = sys.argv[1:] == ["rehearse"]
    from infra.gpu_check.parts import basics

    device = runtime.pick_device("cpu" if rehearse else "auto")
    if rehearse:
        _compile_cheaply()
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["seconds"], exit=True)
        known = [Row(**row) for row in request["rows"]]
        context = Context(device, REHEARSAL if rehearse else FULL, known)
        began = time.monotonic()
        for row in function_of(request["run"])(context, **request["arguments"]):
            row.seconds, began = time.monotonic() - began, time.monotonic()
            replies.write(json.dumps({"row": asdict(row)}) + "\n")
        basics.free()
        faulthandler.cancel_dump_traceback_later()
        replies.write(json.dumps({"done": True}) + "\n")


def function_of(run: str) -> Callable[..., Iterator[Row]]:
    """`correct.stage` is the function `stage` of `parts/correct.py`."""
    module, name = run.split(".")
    function: Callable[..., Iterator[Row]] = getattr(importlib.import_module(f"infra.gpu_check.parts.{module}"), name)
    return function


def _compile_cheaply() -> None:
    """Blocks are traced and differentiated as on a GPU, but no code is generated: a C++ compiler takes minutes."""
    from torch import nn

    compile_module = nn.Module.compile

    def compile_without_code(module: nn.Module, **options: Any) -> None:
        compile_module(module, backend="aot_eager", **options)

    nn.Module.compile = compile_without_code  # type: ignore[method-assign, assignment]


def _told_to(replies: TextIO) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        told: dict[str, Any] = {"type": kind.__name__, "message": str(error), "traceback": text}
        replies.write(json.dumps({"error": told}) + "\n")

    return hook


if __name__ == "__main__":
    main()
