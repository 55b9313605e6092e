"""Tables read row by row, so that a broken row is one broken row: it neither ends the read nor swallows its neighbours.

All values stay text: "NA", "None" and "007" are captions and ids like any other.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import UserError

RECORD_LINES_MAX = 20  # a caption may hold line breaks; one this long is an unclosed quote


@dataclass(frozen=True)
class TableRow:
    """One row of a table by column name, or what is wrong with it."""

    line: int
    """Where it begins in the file, from 1."""
    values: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    first: str = ""
    """Its first field, to know a broken row by."""


def read_csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[TableRow]:
    """The rows of a CSV with a header.

    Raises:
        UserError: a column is missing.
    """
    # surrogateescape: bytes that are not UTF-8 spoil their row, not the table
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        lines = handle.readlines()
    header, start = _record(lines, 0, width=None) if lines else ([], 0)
    names = [] if isinstance(header, str) else [name.strip() for name in header]
    require_columns(path, names, columns)
    return _csv_rows(lines, start, names)


def _csv_rows(lines: list[str], at: int, names: list[str]) -> Iterator[TableRow]:
    while at < len(lines):
        line = at + 1
        if not lines[at].strip():
            at += 1
            continue
        record, at = _record(lines, at, width=len(names))
        first = lines[line - 1].split(",", 1)[0].strip().strip('"').encode("utf-8", "replace").decode()
        if isinstance(record, str):
            yield TableRow(line, problem=f"Line {line} of the table: {record}", first=first)
        elif any("\udc80" <= char <= "\udcff" for value in record for char in value):
            yield TableRow(line, problem=f"Line {line} of the table is not UTF-8 text.", first=first)
        else:
            yield TableRow(line, dict(zip(names, record, strict=True)), first=first)


def _record(lines: list[str], at: int, width: int | None) -> tuple[list[str] | str, int]:
    """The record that begins at line `at` and the line after it; for a broken one what is wrong, and the next line."""
    for end in range(at + 1, min(at + RECORD_LINES_MAX, len(lines)) + 1):
        try:
            record = next(csv.reader(lines[at:end], strict=True))
        except csv.Error as error:
            if "unexpected end" not in str(error):
                break  # more lines will not mend it
            continue
        if width is not None and len(record) != width:
            return f"{len(record)} fields where the header has {width}.", at + 1
        return record, end
    return "a quote is opened and never closed, or closed within a field.", at + 1


def read_jsonl_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a JSONL of `video` and `caption`.

    Raises:
        UserError: no row has these keys.
    """
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    rows = [_json_row(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    found = sorted({key for row in rows if isinstance(row, tuple) for key in row[1]})
    if rows and any(isinstance(row, tuple) for row in rows):
        require_columns(path, found, ("video", "caption"))
    return (row if isinstance(row, TableRow) else _typed(*row) for row in rows)


def _json_row(number: int, line: str) -> TableRow | tuple[int, dict[str, Any]]:
    try:
        line.encode("utf-8")
        value = json.loads(line)
    except ValueError as error:  # UnicodeEncodeError and JSONDecodeError are ValueErrors
        return TableRow(number, problem=f"Line {number} is not JSON in UTF-8: {error}.")
    if not isinstance(value, dict):
        return TableRow(number, problem=f"Line {number} is no JSON object.")
    return number, value


def read_parquet_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a Parquet table of `video` and `caption`.

    Raises:
        UserError: not Parquet, or a column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}.", "", "Check --source.") from None
    require_columns(path, file.schema_arrow.names, ("video", "caption"))
    rows = file.read(columns=["video", "caption"]).to_pylist()
    return (_typed(number, row) for number, row in enumerate(rows, 1))


def _typed(number: int, row: dict[str, Any]) -> TableRow:
    for name in ("video", "caption"):
        if row.get(name) is None and name == "caption":
            row = row | {"caption": ""}  # an empty caption is found by the checks
        elif not isinstance(row.get(name), str):
            return TableRow(number, problem=f"Row {number}: {name} is {row.get(name)!r}, not text.")
        elif any("\ud800" <= char <= "\udfff" for char in row[name]):  # JSON can spell half a character
            return TableRow(number, problem=f"Row {number}: {name} holds half a character (a lone surrogate).")
    return TableRow(number, {"video": row["video"], "caption": row["caption"]}, first=row["video"])


def require_columns(path: Path, found: list[str], wanted: tuple[str, ...]) -> None:
    """Raises UserError naming the missing columns and those there are."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, found)) or 'none'}.",
            f"A table of this kind has {', '.join(wanted)}.",
            "Rename the columns, or add those that are missing.",
        )
