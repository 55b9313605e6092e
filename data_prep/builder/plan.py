"""The plan of a build: the source's rows, checked, compared with what is cached already, and assigned to shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from data_prep.cache.rows import Rejection
from data_prep.cache.shards import VideoState, deal, overlap, read_state, shard_name, shard_paths
from data_prep.encode.tasks import ShardTask, VideoTask
from infra import logs
from infra.artifacts.artifacts import Artifact
from infra.errors import UserError
from infra.hashing import sha256_json

if TYPE_CHECKING:
    from data_prep.config import CacheConfig
    from data_prep.sources.sources import SourceRow

WITHOUT_VIDEO = ("missing_file", "unreadable")  # the row is there, its video is not

log = logs.get_logger("data_prep")


@dataclass(frozen=True)
class Selection:
    """The videos of the next version of a cache."""

    videos: list[VideoTask]
    rejections: list[Rejection]
    """Rows of the source that have no video or fail a check."""
    gone: int
    """Videos whose clips are kept although their rows or files are no longer there."""


def encoding_of(config: CacheConfig, vae_sha256: str, text_sha256: str | None) -> dict[str, Any]:
    """Everything that changes the latents of a video, except the video itself. Thresholds of filters do not."""
    from data_prep.filters.filters import needs

    fields = config.identity()
    for name in ("rejected_share_max", "filters"):
        del fields[name]
    if config.window == "first":
        del fields["seed"]
    filters = config.filters
    cuts = {} if filters.cuts == "keep" else {"cuts": filters.cuts, "cut_threshold": filters.cut_threshold}
    clip = filters.clip if "caption_match" in needs(filters) else None
    return {
        **fields,
        **cuts,
        "measured": sorted(needs(filters)),
        "clip_model": clip.as_input().fingerprint if clip is not None else None,
        "vae": vae_sha256,
        "text_encoder": text_sha256,
    }


def state_of(rows: list[SourceRow], config: CacheConfig, encoding: dict[str, Any], prune: bool) -> str:
    """Hash of everything the next version depends on, with each file's size and time of change. If it equals the
    finished cache's, the cache is up to date."""
    inputs = [[row.clip_id, row.caption, row.source, row.duration, row.url, _file_stamp(row)] for row in rows]
    return sha256_json([config.identity(), encoding, prune, inputs])


def _file_stamp(row: SourceRow) -> str:
    return row.file.stamp if row.file else row.problem.reason if row.problem else ""


def select_videos(
    rows: list[SourceRow], config: CacheConfig, docs: Path, finished: Artifact | None, prune: bool
) -> Selection:
    """Rows that have a video and pass the checks, and what is kept of the finished cache beside them.

    What a row says is judged before its file is: a row with an empty caption and no file has an empty caption. Unless
    `prune`, a clip in the cache outlives its row and its video.
    """
    from data_prep.checks.checks import check_source
    from data_prep.filters.filters import judge_row

    cached = _cached_videos(finished) if finished and not prune else {}
    failed = check_source(rows, docs)
    videos: list[VideoTask] = []
    rejections: list[Rejection] = []
    kept: dict[str, str | None] = {}  # id, and its caption where the source still has one
    for place, row in enumerate(rows):
        if place in failed:
            rejections.append(failed[place])
        elif verdict := judge_row(config.filters, row.caption):
            rejections.append(
                Rejection(row.clip_id, row.source, "filter", verdict.reason, verdict.message, verdict.value)
            )
        elif row.file is not None:
            videos.append(VideoTask(row.clip_id, row.caption, row.source, row.file.stamp, row.file))
        elif row.problem is not None and row.problem.reason in WITHOUT_VIDEO and row.clip_id in cached:
            kept[row.clip_id] = row.caption
        else:
            assert row.problem is not None, "a row has a file or a problem"
            problem = row.problem
            rejections.append(Rejection(row.clip_id, row.source, "source", problem.reason, problem.message))
    listed = {row.clip_id for row in rows}
    kept.update({video_id: None for video_id in cached if video_id not in listed})
    videos += _kept_videos(kept, cached)
    if kept:
        log.info("%d videos are no longer in the source; their clips are kept (--prune drops them).", len(kept))
    return Selection(videos, rejections, len(kept))


def _cached_videos(finished: Artifact) -> dict[str, Path]:
    """Ids of the videos that have clips in the cache, and the shard of each."""
    shards = shard_paths(finished.folder)
    index = pq.read_table(finished.folder / "index.parquet", columns=["video_id", "shard"])
    return {
        video_id: shards[shard]
        for video_id, shard in zip(index["video_id"].to_pylist(), index["shard"].to_pylist(), strict=True)
    }


def _kept_videos(kept: dict[str, str | None], cached: dict[str, Path]) -> list[VideoTask]:
    states: dict[Path, dict[str, VideoState]] = {}
    tasks = []
    for video_id, caption in kept.items():
        shard = cached[video_id]
        if shard not in states:
            states[shard] = read_state(shard).videos
        state = states[shard][video_id]
        tasks.append(VideoTask(video_id, caption or state.caption, state.source, state.stamp, None))
    return tasks


def refuse_reencoding_without_videos(accepted: Selection, encoding: dict[str, Any], finished: Artifact | None) -> None:
    """Raises UserError if clips have to be encoded again and their videos no longer exist."""
    if finished is None or not accepted.gone or finished.metrics["encoding"] == encoding:
        return
    raise UserError(
        f"{accepted.gone} clips in {finished.folder} no longer have a video, and the encoding has changed: "
        f"{changed_fields(finished.metrics['encoding'], encoding)}.",
        "They cannot be encoded again, and a cache holds latents of one encoding only.",
        "Pass --prune to drop them, restore the videos, or build into another --out.",
    )


def changed_fields(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Such as `size 256 → 512, vae`."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    hashes = ("vae", "text_encoder", "clip_model")
    return ", ".join(name if name in hashes else f"{name} {then.get(name)} → {now.get(name)}" for name in names)


def plan(
    config: CacheConfig, videos: list[VideoTask], encoding: dict[str, Any], draft: Path, finished: Path | None
) -> list[ShardTask]:
    """The shards of the next version, in order. A shard's name contains the hash of its inputs, so a file of this name,
    in the draft or in the finished cache, is this shard. A missing shard lists the older shards that may hold some of
    its clips."""
    thresholds = config.filters.model_dump(mode="json")
    before = [path for folder in (draft, finished) if folder for path in shard_paths(folder)]
    names = {path.name for path in before}
    by_prefix = _by_prefix(before)
    tasks = []
    for bits, leaf in deal([(video.video_id, video) for video in videos], config.shard_videos):
        inputs = [[video.video_id, video.caption, video.source, video.stamp] for video in leaf]
        name = shard_name(bits, sha256_json([encoding, thresholds, inputs]))
        old = [] if name in names else _overlapping(bits, before, by_prefix)
        tasks.append(ShardTask(draft / name, leaf, encoding, old))
    return tasks


PREFIX_BITS = 12


def _by_prefix(shards: list[Path]) -> dict[str, list[Path]]:
    """Shards by the first bits of their leaf; those with fewer bits under the empty prefix."""
    found: dict[str, list[Path]] = {}
    for path in shards:
        bits = path.name.split("-")[1].replace("all", "")
        found.setdefault(bits[:PREFIX_BITS] if len(bits) >= PREFIX_BITS else "", []).append(path)
    return found


def _overlapping(bits: str, shards: list[Path], by_prefix: dict[str, list[Path]]) -> list[Path]:
    near = shards if len(bits) < PREFIX_BITS else [*by_prefix.get(bits[:PREFIX_BITS], []), *by_prefix.get("", [])]
    return [path for path in near if overlap(path.name, bits)]


def missing_shards(config: CacheConfig, tasks: list[ShardTask], draft: Path, finished: Path | None) -> list[ShardTask]:
    """The shards that have to be made: neither in the draft nor in the finished cache, or with a near-duplicate whose
    original was removed or has changed. Largest first, so that the workers finish together."""
    there = {path.name: path for folder in (finished, draft) if folder for path in shard_paths(folder)}
    again = (
        _with_changed_originals(tasks, list(there.values()))
        if config.filters.near_duplicate_bits is not None
        else set()
    )
    for path in again:
        if path.parent == draft:
            path.unlink()
    missing = [task for task in tasks if there.get(task.path.name) in (None, *again)]
    return sorted(missing, key=lambda task: -len(task.videos))


def _with_changed_originals(tasks: list[ShardTask], shards: list[Path]) -> set[Path]:
    stamps = {video.video_id: video.stamp for task in tasks for video in task.videos}
    states = {path: read_state(path).videos for path in shards}
    changed = {
        video_id
        for videos in states.values()
        for video_id, video in videos.items()
        if stamps.get(video_id) != video.stamp
    }
    return {
        path
        for path, videos in states.items()
        if any(found.original in changed for video in videos.values() for found in video.duplicates.values())
    }
