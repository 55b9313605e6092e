"""Shards: Parquet files that are written atomically, each with its inputs in its metadata.

The hash of a video's id assigns it to a leaf of a binary tree, and a leaf is a shard: a video that is added,
changed or removed touches one shard, whatever was built before. One file is one commit: after a kill a shard is done,
with every reason for what it lacks, or not there.
"""

from __future__ import annotations

import json
import os
import uuid
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.cache.rows import CACHE_SCHEMA, MANIFEST_COLUMNS, Rejection, place_of

Video = TypeVar("Video")

METADATA_KEY = b"animateflow.shard"
PATTERN = "shard-*.parquet"
ROW_GROUP_BYTES = 1 << 20  # of latents: large enough to stream, small enough to read for the sake of one clip


@dataclass(frozen=True)
class VideoState:
    """What a shard says of one of its videos."""

    caption: str
    source: str
    stamp: str
    """Tells that the file is unchanged without reading it (`data_prep.sources.files.VideoFile.stamp`)."""
    content_sha256: str
    rejections: list[Rejection] = field(default_factory=list)
    duplicates: dict[str, Duplicate] = field(default_factory=dict)
    """By clip id; each is among the rejections too."""


@dataclass(frozen=True)
class Duplicate:
    """A clip that was left out because it looks like another one."""

    phash: str
    original: str
    """The other one's video id."""


@dataclass(frozen=True)
class ShardState:
    """What a shard was made from. Its rows are the clips of `videos` that are not in their rejections."""

    encoding: dict[str, Any]
    """All that changes latents but the video: settings, and hashes of weights."""
    filters: dict[str, Any]
    """Thresholds that were applied."""
    videos: dict[str, VideoState]


def deal(videos: Sequence[tuple[str, Video]], most: int) -> Iterator[tuple[str, list[Video]]]:
    """Leaves of the tree, in order: the first bits of the hashes in them, and the items, each given with its id.

    A leaf holds at most `most` videos and is split in two as soon as it would hold more.
    """
    ordered = sorted((place_of(video_id), video) for video_id, video in videos)  # hashes differ: items are not compared
    places = [int(place[:16], 16) for place, _ in ordered]

    def leaves(low: int, high: int, bits: str) -> Iterator[tuple[str, list[Video]]]:
        if high - low <= most or len(bits) == 64:
            if high > low:
                yield bits, [video for _, video in ordered[low:high]]
            return
        first_of_upper = int((bits + "1").ljust(64, "0"), 2)
        middle = bisect_left(places, first_of_upper, low, high)
        yield from leaves(low, middle, bits + "0")
        yield from leaves(middle, high, bits + "1")

    return leaves(0, len(ordered), "")


def shard_name(bits: str, made_from: str) -> str:
    """Names sort as their rows do; `made_from` is the hash of all that the shard is made from."""
    return f"shard-{bits or 'all'}-{made_from[:16]}.parquet"


def overlap(name: str, bits: str) -> bool:
    """Whether a shard of this name may hold videos of the leaf `bits`."""
    other = name.split("-")[1]
    return other == "all" or other.startswith(bits) or bits.startswith(other)


def write_shard(path: Path, rows: Iterable[dict[str, Any]], state: ShardState) -> None:
    """Writes the rows, in order, through a temporary file that takes its name when it is on the disk."""
    ordered = sorted(rows, key=lambda row: (place_of(row["video_id"]), row["clip_id"]))
    commit(path, pa.Table.from_pylist(ordered, schema=CACHE_SCHEMA), state)


def commit(path: Path, table: pa.Table, state: ShardState) -> None:
    """`write_shard` of a finished table."""
    text = json.dumps(asdict(state), ensure_ascii=True)
    rows = len(table)
    largest = max(1, table["latents"].nbytes // max(1, rows))
    write_table(
        path,
        table.replace_schema_metadata({METADATA_KEY: text.encode()}),
        row_group_size=max(1, ROW_GROUP_BYTES // largest),
    )


def write_table(path: Path, table: pa.Table, row_group_size: int | None = None) -> None:
    """Parquet through a temporary file, fsync and rename. Latents stay plain: compressed or in a dictionary they read
    several times slower and are no smaller."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
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


def read_state(path: Path) -> ShardState:
    """What the shard was made from.

    Raises:
        ArrowInvalid: not a shard of a latent cache.
    """
    metadata = pq.read_schema(path).metadata or {}
    if METADATA_KEY not in metadata:
        raise pa.ArrowInvalid("it does not say what it was made from")
    text = json.loads(metadata[METADATA_KEY])
    return ShardState(
        text["encoding"], text["filters"], {name: _video_state(video) for name, video in text["videos"].items()}
    )


def _video_state(value: dict[str, Any]) -> VideoState:
    rejections = [Rejection(**row) for row in value["rejections"]]
    duplicates = {clip_id: Duplicate(**found) for clip_id, found in value["duplicates"].items()}
    return VideoState(**{**value, "rejections": rejections, "duplicates": duplicates})


def shard_rejections(path: Path) -> list[Rejection]:
    """What the shard could not encode."""
    return [row for video in read_state(path).videos.values() for row in video.rejections]


def shard_paths(folder: Path) -> list[Path]:
    """In the order of their rows."""
    return sorted(folder.glob(PATTERN))


def read_manifest(folder: Path, columns: Sequence[str] = MANIFEST_COLUMNS) -> pa.Table:
    """All rows in order, all columns but the bulky ones, or the given ones."""
    tables = [pq.read_table(path, columns=list(columns)) for path in shard_paths(folder)]
    empty = pa.schema([CACHE_SCHEMA.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *(table.replace_schema_metadata() for table in tables)])
