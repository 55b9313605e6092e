"""What changed between two versions of a cache, read from their shards: the answer is the same whether or not the build
was interrupted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from data_prep.builder.plan import changed_fields
from data_prep.cache.rows import CHANGES_SCHEMA
from data_prep.cache.shards import ShardState, VideoState, read_state, shard_paths, write_table
from infra import logs

log = logs.get_logger("data_prep")

Kind = Literal["new", "video", "encoding", "filters", "caption", "dropped"]
MEANING: dict[str, str] = {
    "new": "new in the source, encoded",
    "video": "the video changed, encoded anew",
    "encoding": "the encoding changed, encoded anew",
    "filters": "filters changed, judged anew",
    "caption": "the caption changed, latents kept",
    "dropped": "no longer in the source, dropped",
}
NAMED_MAX = 10  # in the log; all of them are in changes.parquet


@dataclass(frozen=True)
class Change:
    """What happened to a video's clips."""

    video_id: str
    kind: Kind
    detail: str = ""


def changes(before: Path, after: Path) -> list[Change]:
    """By video, in the order of the cache. Shards of the same name are the same."""
    old = {path.name: path for path in shard_paths(before)}
    new = {path.name: path for path in shard_paths(after)}
    gone = [old[name] for name in old if name not in new or not old[name].samefile(new[name])]
    come = [new[name] for name in new if name not in old or not old[name].samefile(new[name])]
    then = _videos(gone)
    now = _videos(come)
    found = [_change(video_id, then.get(video_id), *now[video_id]) for video_id in now]
    found += [Change(video_id, "dropped") for video_id in then if video_id not in now]
    return [change for change in found if change is not None]


def _videos(shards: list[Path]) -> dict[str, tuple[VideoState, ShardState]]:
    states = [read_state(path) for path in shards]
    return {video_id: (video, state) for state in states for video_id, video in state.videos.items()}


def _change(
    video_id: str, before: tuple[VideoState, ShardState] | None, video: VideoState, state: ShardState
) -> Change | None:
    detail = ", ".join(sorted({f"rejected: {row.reason}" for row in video.rejections}))
    if before is None:
        return Change(video_id, "new", detail)
    then, then_state = before
    if then_state.encoding != state.encoding:
        return Change(video_id, "encoding", changed_fields(then_state.encoding, state.encoding))
    if then.content_sha256 != video.content_sha256:
        return Change(video_id, "video", detail)
    if then.rejections != video.rejections:
        return Change(video_id, "filters", detail or "accepted")
    if then.caption != video.caption:
        return Change(video_id, "caption", f"{then.caption!r} → {video.caption!r}")
    return None


def write_changes(found: list[Change], path: Path) -> dict[str, int]:
    """Writes `changes.parquet`, logs a summary, and returns the counts by kind."""
    rows = [{"clip_id": change.video_id, "change": change.kind, "detail": change.detail} for change in found]
    write_table(path, pa.Table.from_pylist(rows, schema=CHANGES_SCHEMA))
    counts: Counter[str] = Counter(change.kind for change in found)
    for kind, count in counts.items():
        names = [change.video_id for change in found if change.kind == kind]
        more = f" and {count - NAMED_MAX} more" if count > NAMED_MAX else ""
        log.info("%d: %s (%s%s).", count, MEANING[kind], ", ".join(names[:NAMED_MAX]), more)
    return dict(counts)
