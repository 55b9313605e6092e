"""The task of a child process: fetch one video if it is not a local file, hash it, decode its clips.

All of it is away from the process that encodes, so that the encoder waits for no disk and no network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.sources.files import VideoFile
from data_prep.video.decode import DecodedClip, DecodeRequest, Refused, decode_video
from infra.hashing import sha256_file

OPEN_ATTEMPTS = 3  # a network file system may fail once


@dataclass(frozen=True)
class VideoRequest:
    """A video, and how to decode it."""

    file: VideoFile
    decode: DecodeRequest
    """Its path is that of the file, or of its copy."""
    scratch: Path
    """Where a copy may lie meanwhile."""


@dataclass(frozen=True)
class VideoAnswer:
    """The clips, or why there are none."""

    content_sha256: str
    """Of the bytes that were decoded; empty where they could not be read."""
    clips: list[DecodedClip | Refused]


def read_video(request: VideoRequest) -> VideoAnswer:
    """Reads, hashes and decodes a video."""
    for attempt in range(OPEN_ATTEMPTS):
        try:
            with request.file.local(request.scratch) as path:
                return VideoAnswer(sha256_file(path), decode_video(replace(request.decode, path=path)))
        except OSError as error:
            what = f"It could not be read in {OPEN_ATTEMPTS} attempts: {error.strerror or error}."
            time.sleep(2.0**attempt)
    return VideoAnswer("", [Refused("unreadable", what)])
