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

from data_prep.cache.rows import CACHE_SCHEMA, place_of
from data_prep.cache.shards import shard_paths
from infra.artifacts import artifacts


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
    """Checks every row: hash, shapes, finite values, order; and their number against the record and the index.

    Raises:
        UserError: `folder` is not a finished latent cache.
    """
    artifact = artifacts.load(folder, "latent-cache")
    problems: list[str] = []
    clips, last = 0, ("", "")
    places: list[dict[str, Any]] = []
    for shard, path in enumerate(shard_paths(folder)):
        try:
            for place, row in enumerate(_rows(path)):
                clips += 1
                problems += [f"{path.name}: {row['clip_id']}: {what}." for what in row_problems(row)]
                here = (place_of(row["video_id"]), row["clip_id"])
                if here <= last:
                    problems.append(f"{path.name}: {row['clip_id']} comes after {last[1]}: doubled, or out of order.")
                last = here
                places.append(_place(row, shard, place))
        except (pa.ArrowException, OSError) as error:
            problems.append(f"{path.name} cannot be read: {error}.")
    if clips != artifact.counts["clips"]:
        problems.append(f"The record states {artifact.counts['clips']} clips; {clips} are there.")
    problems += _index_problems(folder / "index.parquet", places)
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
    if row["logvar"] is not None and len(row["logvar"]) != len(data):
        yield f"its log-variances are {len(row['logvar'])} bytes, its latents {len(data)}"
    embedding = row["caption_embedding"]
    if embedding is not None and 2 * int(np.prod(row["caption_embedding_shape"])) != len(embedding):
        yield f"its caption's embedding is {len(embedding)} bytes, not the shape {row['caption_embedding_shape']}"


def _place(row: dict[str, Any], shard: int, place: int) -> dict[str, Any]:
    frames = (row["latents_shape"] or [0])[0]
    return {"clip_id": row["clip_id"], "video_id": row["video_id"], "shard": shard, "row": place, "frames": frames}


def _index_problems(path: Path, places: list[dict[str, Any]]) -> Iterator[str]:
    try:
        index = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        yield f"{path.name} cannot be read: {error}."
        return
    if index.to_pylist() != places:
        yield f"{path.name} does not list the rows of the shards."


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path, memory_map=True) as file:
        if file.schema_arrow.remove_metadata() != CACHE_SCHEMA:
            raise pa.ArrowInvalid("its columns are not those of a latent cache")
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()
