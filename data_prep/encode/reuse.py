"""Reuses the clips of older shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from data_prep.cache.rows import Rejection
from data_prep.cache.shards import ShardState, read_state
from infra.errors import WorkError
from infra.hashing import sha256_file

if TYPE_CHECKING:
    from data_prep.encode.tasks import VideoTask
    from data_prep.filters.filters import Filters


@dataclass(frozen=True)
class OldClips:
    """The clips and rejections that an older shard holds of a video."""

    content_sha256: str
    rows: list[dict[str, Any]]
    rejections: list[Rejection]


class OldShards:
    """The clips and rejections in older shards of the same encoding."""

    def __init__(self, shards: list[Path], encoding: dict[str, Any], filters: Filters) -> None:
        self._states: dict[Path, ShardState] = {}
        for path in shards:
            state = read_state(path)
            if state.encoding == encoding:
                self._states[path] = state
        self._thresholds = filters.model_dump(mode="json")
        self._rows: dict[Path, dict[str, list[dict[str, Any]]]] = {}

    def of(self, video: VideoTask) -> OldClips | None:
        """The video's clips and rejections; None if it has to be encoded.

        A video counts as unchanged if the stamp of its file is, or else the hash of its bytes.

        Raises:
            WorkError: neither the video nor its clips exist any more.
        """
        for path, state in self._states.items():
            before = state.videos.get(video.video_id)
            if before is None or before.duplicates:
                continue
            if any(row.stage == "filter" for row in before.rejections) and state.filters != self._thresholds:
                continue  # with other thresholds it may pass
            if any(row.reason == "unreadable" for row in before.rejections):
                continue
            if before.stamp == video.stamp or (
                before.content_sha256 and before.content_sha256 == _content_sha256(video)
            ):
                return OldClips(before.content_sha256, self._rows_of(path, video.video_id), before.rejections)
        if video.file is None:
            raise WorkError(
                f"The clips of {video.video_id} were in the cache, and its video no longer exists.",
                "They were to be reused, and the shard that held them no longer exists.",
                "Restore the video, or pass --prune.",
            )
        return None

    def _rows_of(self, path: Path, video_id: str) -> list[dict[str, Any]]:
        if path not in self._rows:
            self._rows[path] = {}
            for row in pq.read_table(path).to_pylist():
                self._rows[path].setdefault(row["video_id"], []).append(row)
        return self._rows[path].get(video_id, [])


def _content_sha256(video: VideoTask) -> str:
    """Of the file's bytes; empty where they cannot be read."""
    if video.file is None:
        return ""
    try:
        with TemporaryDirectory(prefix="animateflow-") as scratch, video.file.local(Path(scratch)) as path:
            return sha256_file(path)
    except OSError:
        return ""
