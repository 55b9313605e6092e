"""Reads a whole cache and says which rows are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.rows import CACHE_SCHEMA
from data_prep.shards import shard_paths
from infra import artifacts


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `str()` of it is for a person."""

    folder: Path
    clips: int
    problems: tuple[str, ...]
    """A sentence for each damaged row or file."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        if self.ok:
            return f"{self.folder}: {self.clips} clips, every row whole."
        return "\n".join([f"{self.folder}: {len(self.problems)} problems in {self.clips} clips.", *self.problems])


def verify(folder: Path) -> Verification:
    """Checks every row: hash, shape, finite values, order; and their number against the record.

    Raises:
        UserError: `folder` is not a finished latent cache.
    """
    artifact = artifacts.load(folder, "latent-cache")
    problems: list[str] = []
    clips, last = 0, ""
    for path in shard_paths(folder):
        try:
            for row in _rows(path):
                clips += 1
                problems += [f"{path.name}: {row['clip_id']}: {what}." for what in row_problems(row)]
                if row["clip_id"] <= last:
                    problems.append(f"{path.name}: {row['clip_id']} comes after {last}: doubled, or out of order.")
                last = row["clip_id"]
        except (pa.ArrowException, OSError) as error:
            problems.append(f"{path.name} cannot be read: {error}.")
    if clips != artifact.counts["clips"]:
        problems.append(f"The record states {artifact.counts['clips']} clips; {clips} are there.")
    return Verification(folder, clips, tuple(problems))


def row_problems(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with one row, in words."""
    shape, data = tuple(row["latents_shape"] or ()), row["latents"] or b""
    if hashlib.sha256(data).hexdigest() != row["latents_sha256"]:
        yield "its latents do not have the recorded hash"
    if len(shape) != 4 or 2 * int(np.prod(shape)) != len(data):
        yield f"its latents are {len(data)} bytes, which is not the shape {shape} in fp16"
        return
    if not np.isfinite(np.frombuffer(data, dtype=np.float16)).all():
        yield "its latents hold values that are not finite"
    if len(row["source_indices"]) != shape[0]:
        yield f"it names {len(row['source_indices'])} source frames and holds {shape[0]}"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path, memory_map=True) as file:
        if file.schema_arrow.remove_metadata() != CACHE_SCHEMA:
            raise pa.ArrowInvalid("its columns are not those of a latent cache")
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()
