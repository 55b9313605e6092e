"""A line of the result: what was found, what was aimed at, and whether it was reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "short", "failed", "not reached"]
Value = float | str | None


@dataclass
class Row:
    """`status` is `short` where the value misses its target; `details` go into the JSON only."""

    what: str
    value: Value = None
    unit: str = ""
    target: str = ""
    status: Status = "ok"
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    part: str = ""
    """The check that found it, and the seconds it took to find."""
    seconds: float = 0.0


def at_least(least: float, what: str, value: float, unit: str = "", note: str = "", **details: Any) -> Row:
    """`ok` from `least` on."""
    status: Status = "ok" if value >= least else "short"
    return Row(what, value, unit, f"≥ {least:g}", status, note, details)


def at_most(most: float, what: str, value: float, unit: str = "", note: str = "", **details: Any) -> Row:
    """`ok` up to `most`; a value that is not a number is short of it."""
    status: Status = "ok" if value <= most else "short"
    return Row(what, value, unit, f"≤ {most:g}", status, note, details)


def line(row: Row) -> str:
    """For people."""
    target = f" (target {row.target})" if row.target else ""
    note = f"  {row.note}" if row.note else ""
    return f"{row.status:<11} {row.seconds:6.1f} s  {row.part}: {row.what} {shown(row)}{target}{note}".rstrip()


def shown(row: Row) -> str:
    """The value with its unit, at three digits or so."""
    if row.value is None or isinstance(row.value, str):
        return f"{row.value or ''} {row.unit}".strip()
    digits = "0" if row.value == 0 or not math.isfinite(row.value) else f"{row.value:.4g}"
    if not math.isfinite(row.value):
        digits = str(row.value)
    return f"{digits} {row.unit}".strip()


def table(rows: Sequence[Row]) -> str:
    """All rows, the columns aligned."""
    cells = [("part", "what", "value", "target", "status", "s")]
    cells += [(row.part, row.what, shown(row), row.target, row.status, f"{row.seconds:.1f}") for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)) for cell in cells)


def counts(rows: Sequence[Row]) -> str:
    """`31 ok, 2 short, 0 failed, 4 not reached`."""
    every: tuple[Status, ...] = ("ok", "short", "failed", "not reached")
    return ", ".join(f"{sum(row.status == status for row in rows)} {status}" for status in every)
