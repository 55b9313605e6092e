"""Everything about the CUDA side on one GPU, in minutes: is it right, how fast is it, was it predicted.

    python -m infra.gpu_check --minutes 9 --json gpu.json
    python -m infra.gpu_check --rehearse          all of it small, on the CPU
    python -m infra.gpu_check --needs             what it needs beside torch, transformers, safetensors and numpy:
                                                  a name==version a line, about 40 MiB of wheels

Prints each row as it is found and all of them at the end. Exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from infra.gpu_check import needs, rows
from infra.gpu_check.checks import checks
from infra.gpu_check.run import run
from infra.gpu_check.sizes import FULL, REHEARSAL


def main() -> int:
    began = time.monotonic()
    options = _options()
    if options.needs:
        print("\n".join(needs.lines()))
        return 0
    found: list[rows.Row] = []

    def told(row: rows.Row) -> None:
        found.append(row)
        print(rows.line(row), flush=True)
        if options.json is not None:  # after every row: a run that is cut off leaves what it has found
            _write(options.json, found, options, time.monotonic() - began)

    sizes = REHEARSAL if options.rehearse else FULL
    wanted = [check for check in checks(sizes) if not options.only or _named(check.part, check.name, options.only)]
    minutes = 60.0 if options.rehearse else options.minutes  # a rehearsal reaches every check, on a slow machine too
    run(wanted, began + 60 * minutes, options.rehearse, told, patience=10.0 if options.rehearse else 1.0)
    print(f"\n{rows.table(found)}\n\n{rows.counts(found)} in {time.monotonic() - began:.0f} s")
    return int(any(row.status == "failed" for row in found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="it ends before these are over (9)")
    parser.add_argument("--json", type=Path, help="where all that was found is kept")
    parser.add_argument("--rehearse", action="store_true", help="everything small, on the CPU")
    parser.add_argument("--needs", action="store_true", help="print the packages it needs, and no more")
    parser.add_argument("--only", action="append", metavar="WORDS", help="checks whose part or name has these words")
    return parser.parse_args()


def _named(part: str, name: str, words: list[str]) -> bool:
    return any(each in f"{part} {name}" for each in words)


def _write(path: Path, found: list[rows.Row], options: argparse.Namespace, seconds: float) -> None:
    machine = next((row.details for row in found if row.part == "machine"), None)
    result = {
        "machine": machine, "rehearsal": options.rehearse, "minutes": options.minutes, "seconds": seconds,
        "rows": [asdict(row) for row in found],
    }  # fmt: skip
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
