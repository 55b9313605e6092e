"""The tasks of a build: a shard with its videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.sources.files import VideoFile

INCOMPLETE = "-again"  # ends the name of a shard that lacks videos which could not be read this time


@dataclass(frozen=True, slots=True)
class VideoTask:
    """A video to be made into clips."""

    video_id: str
    caption: str
    source: str
    stamp: str
    file: VideoFile | None
    """None if the video no longer exists and its clips are reused from an older shard."""


@dataclass(frozen=True)
class ShardTask:
    """The videos of one shard, and its file."""

    path: Path
    videos: list[VideoTask]
    encoding: dict[str, Any]
    old: list[Path]
    """Older shards that may hold clips of these videos."""

    @property
    def path_incomplete(self) -> Path:
        """Its name if a video could not be read: the next run makes it again."""
        return self.path.with_name(f"{self.path.stem}{INCOMPLETE}.parquet")
