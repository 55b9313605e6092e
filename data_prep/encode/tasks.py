"""What a shard is made from: its videos, and the file that they become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.sources.files import VideoFile

AGAIN = "-again"  # ends the name of a shard that lacks videos which could not be read this time


@dataclass(frozen=True, slots=True)
class VideoTask:
    """A video to be made into clips."""

    video_id: str
    caption: str
    source: str
    stamp: str
    file: VideoFile | None
    """None where the video is gone, and its clips are taken over from an older shard."""


@dataclass(frozen=True)
class ShardTask:
    """The videos of one shard, and the file that they become."""

    path: Path
    videos: list[VideoTask]
    encoding: dict[str, Any]
    old: list[Path]
    """Older shards that may hold clips of these videos."""

    @property
    def path_again(self) -> Path:
        """Its name where a video could not be read: the next run will not take it for done."""
        return self.path.with_name(f"{self.path.stem}{AGAIN}.parquet")
