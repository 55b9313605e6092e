"""Shards: Parquet files that are written whole or not at all, each with its own rejections in its metadata.

One file is one commit, so that after a kill a shard is either done, with every reason, or not there. Rows are one row
group each: a training step reads single rows, through a memory map, without touching their neighbours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.rows import CACHE_SCHEMA, MANIFEST_COLUMNS, Rejection

REJECTED_KEY = b"animateflow.rejected"
PATTERN = "shard-*.parquet"


def write_shard(path: Path, rows: Iterable[dict[str, Any]], rejections: Iterable[Rejection]) -> None:
    """Writes the rows, sorted by clip id, through a temporary file that takes its name when it is on the disk."""
    ordered = sorted(rows, key=lambda row: str(row["clip_id"]))
    commit(path, pa.Table.from_pylist(ordered, schema=CACHE_SCHEMA), rejections)


def commit(path: Path, table: pa.Table, rejections: Iterable[Rejection]) -> None:
    """`write_shard` of a finished table."""
    rejected = json.dumps([row.as_dict() for row in rejections], ensure_ascii=True)
    table = table.replace_schema_metadata({REJECTED_KEY: rejected.encode()})
    write_table(path, table, row_group_size=1)


def write_table(path: Path, table: pa.Table, row_group_size: int | None = None) -> None:
    """Parquet through a temporary file, fsync and rename. Latents stay plain: compressed or in a dictionary they read
    several times slower and are no smaller."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as handle:
        pq.write_table(table, handle, row_group_size=row_group_size, use_dictionary=False, compression="none")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name is on the disk too
    finally:
        os.close(folder)


def shard_rejections(path: Path) -> list[Rejection]:
    """What the shard could not encode."""
    metadata = pq.read_schema(path).metadata or {}
    return [Rejection(**row) for row in json.loads(metadata.get(REJECTED_KEY, b"[]"))]


def shard_paths(folder: Path) -> list[Path]:
    """In the order of their clip ids."""
    return sorted(folder.glob(PATTERN))


def read_manifest(folder: Path) -> pa.Table:
    """All rows without their latents, in order."""
    tables = [pq.read_table(path, columns=MANIFEST_COLUMNS) for path in shard_paths(folder)]
    empty = pa.schema([CACHE_SCHEMA.field(name) for name in MANIFEST_COLUMNS]).empty_table()
    return pa.concat_tables([empty, *(table.replace_schema_metadata() for table in tables)])
