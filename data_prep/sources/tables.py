"""Tables read row by row, so that a broken row is one broken row: it neither ends the read nor swallows its neighbours.

All values stay text: "NA", "None" and "007" are captions and ids like any other.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from infra.errors import UserError

RECORD_LINES_MAX = 20  # a caption may hold line breaks; one this long is an unclosed quote
ROW_COLUMNS = ("video", "caption")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table by column name, or what is wrong with it."""

    line: int
    """Where it begins in the file, from 1."""
    values: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    first: str = ""
    """The first field of a broken row, to know it by."""


def read_csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[TableRow]:
    """The rows of a CSV with a header.

    Raises:
        UserError: a column is missing.
    """
    # surrogateescape: bytes that are not UTF-8 spoil their row, not the table
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        header = _record(lines, width=None) if lines.ahead(1) else []
        names = [] if isinstance(header, str) else [name.strip() for name in header]
        require_columns(path, names, columns)
        yield from _csv_rows(lines, names)


class _Lines:
    """A file's lines, some of them read ahead."""

    def __init__(self, file: Iterator[str]) -> None:
        self._file = file
        self._ahead: deque[str] = deque()
        self.number = 1
        """Of the next line."""

    def ahead(self, count: int) -> list[str]:
        """The next `count` lines, fewer at the end."""
        while len(self._ahead) < count and (line := next(self._file, None)) is not None:
            self._ahead.append(line)
        return list(islice(self._ahead, count))

    def drop(self, count: int) -> None:
        """Goes on, no further than was read ahead."""
        for _ in range(count):
            self._ahead.popleft()
        self.number += count


def _csv_rows(lines: _Lines, names: list[str]) -> Iterator[TableRow]:
    while next_line := lines.ahead(1):
        if not next_line[0].strip():
            lines.drop(1)
            continue
        line = lines.number
        record = _record(lines, width=len(names))
        if not isinstance(record, str) and _utf8(record):
            yield TableRow(line, dict(zip(names, record, strict=True)))
            continue
        problem = f"Line {line} of the table: {record}" if isinstance(record, str) else ""
        first = next_line[0].split(",", 1)[0].strip().strip('"').encode("utf-8", "replace").decode()
        yield TableRow(line, problem=problem or f"Line {line} of the table is not UTF-8 text.", first=first)


def _utf8(record: list[str]) -> bool:
    try:
        "".join(record).encode()
    except UnicodeEncodeError:
        return False
    return True


def _record(lines: _Lines, width: int | None) -> list[str] | str:
    """The next record; of a broken one what is wrong, and only its first line is dropped."""
    for count in range(1, RECORD_LINES_MAX + 1):
        some = lines.ahead(count)
        if len(some) < count:
            break
        try:
            record = next(csv.reader(some, strict=True))
        except csv.Error as error:
            if "unexpected end" not in str(error):
                break  # more lines will not mend it
            continue
        if width is not None and len(record) != width:
            lines.drop(1)
            return f"{len(record)} fields where the header has {width}."
        lines.drop(count)
        return record
    lines.drop(1)
    return "a quote is opened and never closed, or closed within a field."


def read_jsonl_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a JSONL of `video` and `caption`.

    Raises:
        UserError: no row has these keys.
    """
    keys: set[str] = set()
    objects = 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = _json_row(number, line)
            if isinstance(row, TableRow):
                yield row
                continue
            objects += 1
            if not keys.issuperset(ROW_COLUMNS):
                keys |= row.keys()
            yield _typed(number, row)
    if objects:
        require_columns(path, sorted(keys), ROW_COLUMNS)


def _json_row(number: int, line: str) -> TableRow | dict[str, Any]:
    try:
        line.encode("utf-8")
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError and JSONDecodeError are ValueErrors
        return TableRow(number, problem=f"Line {number} is not JSON in UTF-8: {error}.")
    return value if isinstance(value, dict) else TableRow(number, problem=f"Line {number} is no JSON object.")


def read_parquet_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a Parquet table of `video` and `caption`.

    Raises:
        UserError: not Parquet, or a column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            require_columns(path, file.schema_arrow.names, ROW_COLUMNS)
            for batch in file.iter_batches(columns=list(ROW_COLUMNS)):
                for row in batch.to_pylist():
                    number += 1
                    yield _typed(number, row)
    except (pa.ArrowException, OSError, ValueError) as error:
        where = f" beyond row {number}" if number else ""
        raise UserError(f"{path.name} is not a Parquet file{where}: {error}.", "", "Check --source.") from None


def _typed(number: int, row: dict[str, Any]) -> TableRow:
    values: dict[str, str] = {}
    for name in ROW_COLUMNS:
        value = row.get(name)
        if value is None and name == "caption":
            value = ""  # an empty caption is found by the checks
        if not isinstance(value, str):
            return TableRow(number, problem=f"Row {number}: {name} is {value!r}, not text.")
        if not _utf8([value]):  # JSON can spell half a character
            return TableRow(number, problem=f"Row {number}: {name} holds half a character (a lone surrogate).")
        values[name] = value
    return TableRow(number, values)


def require_columns(path: Path, found: list[str], wanted: tuple[str, ...]) -> None:
    """Raises UserError naming the missing columns and those there are."""
    missing = [name for name in wanted if name not in found]
    if missing:
        there = ", ".join(map(repr, found)) or "none"
        raise UserError(
            f"{path.name} has no column {', '.join(map(repr, missing))}; it has {there}.",
            f"A table of this kind has {', '.join(wanted)}.",
            "Rename the columns, or add those that are missing.",
        )
