"""The end of a build: unchanged shards are linked, near-duplicates and rows that fail the checks are removed, and the
record gets its figures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.builder.changes import changes, write_changes
from data_prep.cache.rows import INDEX_SCHEMA, Rejection, rejected_table
from data_prep.cache.shards import (
    Duplicate,
    commit,
    read_manifest,
    read_state,
    shard_paths,
    shard_rejections,
    write_table,
)
from data_prep.checks.checks import CHECKED_COLUMNS, check_manifest
from infra import logs
from infra.errors import WorkError

if TYPE_CHECKING:
    from data_prep.builder.plan import Selection
    from data_prep.config import CacheConfig
    from data_prep.encode.tasks import ShardTask
    from infra.artifacts.artifacts import Draft

INDEX_GROUP_ROWS = 1 << 17  # one group a shard would be slow to open

log = logs.get_logger("data_prep")


def finish(config: CacheConfig, draft: Draft, before: Path | None, tasks: list[ShardTask], selected: Selection) -> None:
    """Completes the draft's folder, and fills `draft.counts` and `draft.metrics`.

    Raises:
        WorkError: too large a share of the source's rows is rejected.
    """
    from data_prep.checks.data_docs import write_index

    folder = draft.folder
    _link_shards(folder, before, tasks)
    _remove_near_duplicates(folder, config)
    manifest = read_manifest(folder, (*CHECKED_COLUMNS, "latents_shape"))
    failed = check_manifest(manifest, config, folder / "data_docs")
    if failed:
        _remove_clips(folder, list(failed.values()))
        manifest = read_manifest(folder, manifest.column_names)
    write_index(folder / "data_docs")
    rejected = [*selected.rejections, *(row for path in shard_paths(folder) for row in shard_rejections(path))]
    write_table(folder / "rejected.parquet", rejected_table(rejected))
    reasons = Counter(row.reason for row in rejected)
    _check_rejected_share(config, reasons, len(selected.rejections) + len(selected.videos), folder / "rejected.parquet")
    write_index_table(folder)
    found = write_changes(changes(before, folder) if before else [], folder / "changes.parquet")
    frames = [shape[0] for shape in manifest["latents_shape"].to_pylist()]
    draft.counts = {
        "clips": len(manifest),
        "rejected": len(rejected),
        **{f"rejected.{reason}": count for reason, count in sorted(reasons.items())},
        "frames": sum(frames),
    }
    seconds = sum(count / fps for count, fps in zip(frames, manifest["fps"].to_pylist(), strict=True))
    draft.metrics = {
        "hours": round(seconds / 3600, 6),
        "bytes": sum(path.stat().st_size for path in shard_paths(folder)),
        "changes": found if before else {"new": len(selected.videos)},
        "kept_without_video": selected.gone,
        "data_docs": "data_docs/index.html",
        "rows_sha256": _rows_sha256(manifest, rejected),
    }


def _link_shards(folder: Path, before: Path | None, tasks: list[ShardTask]) -> None:
    """Afterwards `folder` holds every shard of the plan and no other."""
    wanted = set()
    for task in tasks:
        path = task.path if task.path.exists() or not task.path_incomplete.exists() else task.path_incomplete
        if not path.exists():
            assert before is not None, f"{path.name} was not made"
            _link(before / path.name, path)
        wanted.add(path.name)
    for path in [*shard_paths(folder), *folder.glob(".shard-*.tmp")]:
        if path.name not in wanted:
            path.unlink()  # of a run that was stopped, and of another plan


def _link(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # a file system without hard links
        temporary = to.with_name(f".{to.name}.tmp")
        shutil.copy2(path, temporary)
        os.replace(temporary, to)


def _remove_near_duplicates(folder: Path, config: CacheConfig) -> None:
    """Leaves out a clip that looks like an earlier one, even if the earlier one is left out too: the result depends on
    the clips alone, not on the order in which they were added."""
    from data_prep.filters.measures import near_duplicates

    bits = config.filters.near_duplicate_bits
    if bits is None:
        return
    hashes: list[tuple[str, str, str]] = []  # clip, video, perceptual hash, in the order of the cache
    for path in shard_paths(folder):
        rows = pq.read_table(path, columns=["clip_id", "video_id", "phash"]).to_pylist()
        there = [(row["clip_id"], row["video_id"], row["phash"]) for row in rows]
        there += [
            (clip_id, video_id, found.phash)
            for video_id, video in read_state(path).videos.items()
            for clip_id, found in video.duplicates.items()
        ]
        hashes += sorted(there, key=lambda clip: (hashlib.sha256(clip[1].encode()).hexdigest(), clip[0]))
    found = near_duplicates([clip for clip, _, _ in hashes], [phash for _, _, phash in hashes], bits)
    video_of = {clip: video for clip, video, _ in hashes}
    phash_of = {clip: phash for clip, _, phash in hashes}
    rejections = []
    duplicates: dict[str, Duplicate] = {}
    for clip, original in found.items():
        message = f"It looks like {original} (perceptual hashes within {bits} bits)."
        rejections.append(Rejection(clip, "", "filter", "near_duplicate", message))
        duplicates[clip] = Duplicate(phash_of[clip], video_of[original])
    _remove_clips(folder, rejections, duplicates)


def _remove_clips(
    folder: Path, rejections: Iterable[Rejection], duplicates: dict[str, Duplicate] | None = None
) -> None:
    """Rewrites the shards that hold these clips, without them."""
    by_clip = {row.clip_id: row for row in rejections}
    for path in shard_paths(folder):
        ids = pq.read_table(path, columns=["clip_id"])["clip_id"]
        gone = pc.is_in(ids, pa.array(sorted(by_clip), pa.string()))
        if not pc.any(gone).as_py():
            continue
        table, state = pq.read_table(path), read_state(path)
        videos = dict(state.videos)
        for row in table.filter(gone).select(["clip_id", "video_id", "source"]).to_pylist():
            clip_id, video = row["clip_id"], videos[row["video_id"]]
            rejection = replace(by_clip[clip_id], source=row["source"])
            mine = {clip_id: duplicates[clip_id]} if duplicates else {}
            videos[row["video_id"]] = replace(
                video, rejections=[*video.rejections, rejection], duplicates={**video.duplicates, **mine}
            )
        commit(path, table.filter(pc.invert(gone)), replace(state, videos=videos))


def write_index_table(folder: Path) -> None:
    """`index.parquet`: where each clip is, so that a cache of any size opens at once."""
    temporary = folder / ".index.parquet.tmp"
    with pq.ParquetWriter(temporary, INDEX_SCHEMA) as writer:
        waiting: list[pa.Table] = []
        for shard, path in enumerate(shard_paths(folder)):
            waiting.append(_index_of(shard, path))
            if sum(map(len, waiting)) >= INDEX_GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting), row_group_size=INDEX_GROUP_ROWS)
                waiting = []
        writer.write_table(pa.concat_tables([INDEX_SCHEMA.empty_table(), *waiting]), row_group_size=INDEX_GROUP_ROWS)
    os.replace(temporary, folder / "index.parquet")


def _index_of(shard: int, path: Path) -> pa.Table:
    rows = pq.read_table(path, columns=["clip_id", "video_id", "latents_shape"])
    return pa.table(
        {
            "clip_id": rows["clip_id"],
            "video_id": rows["video_id"],
            "shard": pa.array([shard] * len(rows), pa.int32()),
            "row": pa.array(range(len(rows)), pa.int32()),
            "frames": pa.array([shape[0] for shape in rows["latents_shape"].to_pylist()], pa.int32()),
        },
        schema=INDEX_SCHEMA,
    )


def _rows_sha256(manifest: pa.Table, rejected: list[Rejection]) -> str:
    """Hash of the rows' content: the same videos and captions at another path are the same input."""
    digest = hashlib.sha256()
    columns = (manifest[name].to_pylist() for name in ("clip_id", "caption", "content_sha256"))
    for clip in zip(*columns, strict=True):
        digest.update(json.dumps(clip).encode())
    for row in sorted((row.clip_id, row.reason) for row in rejected):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _check_rejected_share(config: CacheConfig, reasons: Counter[str], rows: int, table: Path) -> None:
    count = reasons.total()
    text = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    if count > config.rejected_share_max * rows:
        raise WorkError(
            f"{count} of {rows} rows are rejected ({text}).",
            f"The config allows {config.rejected_share_max:.0%}.",
            f"Read the reasons in {table}, correct the source, or raise rejected_share_max.",
        )
    if count:
        log.warning("%d of %d rows are rejected (%s); each with its reason in rejected.parquet.", count, rows, text)
    if count == rows:
        log.warning("The cache is empty: no row of the source can be used.")
