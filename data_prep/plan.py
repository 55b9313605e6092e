"""What there is to do: the source's rows, hashed, checked, and dealt into shards."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.checks import check_source
from data_prep.decode import request_for
from data_prep.rows import Rejection
from data_prep.sources import Problem, SourceRow
from data_prep.worker import ClipTask, ShardTask
from infra.artifacts import Input
from infra.hashing import sha256_file, sha256_json

if TYPE_CHECKING:
    from data_prep.build import CacheConfig

SHARD_CLIPS = 32
HASHING_THREADS = 4  # hashing waits for the disk, and leaves the interpreter free


def with_hashes(rows: list[SourceRow]) -> tuple[list[SourceRow], dict[Path, str]]:
    """The rows, and the SHA256 of every file of theirs; a row whose file cannot be read has a problem now."""
    paths = sorted({row.path for row in rows if row.path is not None})
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found = dict(zip(paths, pool.map(_hash, paths), strict=True))
    problems = {path: result for path, result in found.items() if isinstance(result, Problem)}
    marked = [replace(row, path=None, problem=problems[row.path]) if row.path in problems else row for row in rows]
    return marked, {path: result for path, result in found.items() if isinstance(result, str)}


def _hash(path: Path) -> str | Problem:
    try:
        return sha256_file(path)
    except OSError as error:
        return Problem("unreadable", f"{path} cannot be read: {error.strerror}.")


def as_input(source: Path, rows: list[SourceRow], hashes: dict[Path, str]) -> Input:
    """What was read, not how it was written: the same rows as CSV and as Parquet, anywhere, are the same input."""
    values = [
        [
            row.clip_id,
            row.caption,
            row.duration,
            row.url,
            hashes[row.path] if row.path else "",
            row.problem.reason if row.problem else "",
        ]
        for row in rows
    ]
    return Input("videos", source.name, sha256_json(values))


def accept(rows: list[SourceRow], docs: Path) -> tuple[list[SourceRow], list[Rejection]]:
    """Rows that have a video and pass the checks, in the order of their ids; and the rejections of the others.

    What a row says is judged before its file is: a row with an empty caption and no file has an empty caption.
    """
    failed = check_source(rows, docs)
    accepted, rejections = [], []
    for place, row in enumerate(rows):
        if place in failed:
            rejections.append(failed[place])
        elif row.problem is not None:
            problem = row.problem
            rejections.append(Rejection(row.clip_id, row.source, "source", problem.reason, problem.message))
        else:
            accepted.append(row)
    return sorted(accepted, key=lambda row: row.clip_id), rejections


def plan(config: CacheConfig, rows: list[SourceRow], hashes: dict[Path, str], folder: Path) -> list[ShardTask]:
    """Shards of `SHARD_CLIPS` clips. A shard's name holds the hash of what it is made from, so that a file of this name
    is this shard."""
    tasks = []
    for number, first in enumerate(range(0, len(rows), SHARD_CLIPS)):
        clips = [_clip_task(config, row, hashes) for row in rows[first : first + SHARD_CLIPS]]
        made_from = sha256_json([[clip.request.clip_id, clip.caption, clip.content_sha256] for clip in clips])
        tasks.append(ShardTask(folder.absolute() / f"shard-{number:05d}-{made_from[:12]}.parquet", clips))
    return tasks


def _clip_task(config: CacheConfig, row: SourceRow, hashes: dict[Path, str]) -> ClipTask:
    assert row.path is not None, "an accepted row has a file"
    return ClipTask(row.caption, row.source, hashes[row.path], request_for(config, row.clip_id, row.path))
