"""Frames of a video by their places: decord where it can, PyAV for what decord cannot read. N frames, H W pixels.

decord 0.6 has an FFmpeg of 2021 inside: no AV1, no VVC, no frame count for GIF, edit lists ignored, and pictures of
some narrow widths come out with a fourth colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.problems import UnusableError
from data_prep.video.probe import Probe

UInt8 = NDArray[np.uint8]
Indices = NDArray[np.int64]

CHUNK_BYTES = 32 << 20  # of frames held at the source's resolution at a time
CHUNK_FRAMES_MAX = 64
NOT_FOR_DECORD = ("av1", "vvc", "evc", "gif", "mpegts", "mpeg")
"""Codecs and containers; of transport and program streams it finds no frame by its place."""


class FrameReader(Protocol):
    """One video, opened."""

    name: str
    """`decord` or `pyav`: the clip's `decoder`."""

    def chunks(self, indices: Indices) -> Iterator[UInt8]:
        """The frames at these places, which do not fall, upright, as (N, H, W, 3), some at a time.

        Raises:
            UnusableError: a frame cannot be decoded.
            NotReadableError: another reader may do better.
        """
        ...


class NotReadableError(Exception):
    """The file may be whole, and this reader cannot read it."""


def readers(path: Path, found: Probe) -> Iterator[FrameReader]:
    """The readers to try, one after the other."""
    if found.codec not in NOT_FOR_DECORD and found.container not in NOT_FOR_DECORD:
        yield DecordReader(path, found)
    yield PyavReader(path, found)


class DecordReader:
    """Opened at the first chunk."""

    name = "decord"

    def __init__(self, path: Path, found: Probe) -> None:
        self._path, self._found = path, found

    def chunks(self, indices: Indices) -> Iterator[UInt8]:
        import decord

        try:
            # Without fault_tol=1 decord repeats the last good frame where decoding fails, and says nothing. One thread
            # a reader: more deliver the same frames with more memory.
            reader = decord.VideoReader(str(self._path), num_threads=1, fault_tol=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise NotReadableError(_decord_message(error)) from None
        if len(reader) != len(self._found.times):  # an edit list or hidden frames; frames would be repeated
            raise NotReadableError(f"decord counts {len(reader)} frames, the container {len(self._found.times)}")
        step = _chunk_frames(self._found)
        for first in range(0, len(indices), step):
            try:
                yield reader.get_batch(indices[first : first + step].tolist()).asnumpy()
            except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
                raise NotReadableError(_decord_message(error)) from None  # damaged, or odd: PyAV knows


class PyavReader:
    """Decodes from the keyframe before the first frame that is wanted to the last one."""

    name = "pyav"

    def __init__(self, path: Path, found: Probe) -> None:
        self._path, self._found = path, found

    def chunks(self, indices: Indices) -> Iterator[UInt8]:
        import av

        frames: list[UInt8] = []
        try:
            for frame in self._wanted(indices):
                frames.append(frame)
                if len(frames) == _chunk_frames(self._found):
                    yield np.stack(frames)
                    frames = []
        except av.error.FFmpegError as error:
            raise UnusableError(
                "damaged", f"The file opens and its frames cannot all be decoded: {error.strerror}."
            ) from None
        if frames:
            yield np.stack(frames)

    def _wanted(self, indices: Indices) -> Iterator[UInt8]:
        import av
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()  # one for all frames keeps its tables
        ticks = self._found.ticks[indices].tolist()
        with av.open(str(self._path), metadata_errors="replace") as container:
            stream: Any = container.streams.best("video")
            stream.codec_context.options = {"err_detect": "explode"}  # damage is an error, not a grey block
            if ticks[0] > self._found.ticks[0]:
                container.seek(int(ticks[0]), stream=stream)
            cursor = 0
            frame: Any
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise UnusableError("damaged", f"The frame at {frame.time or 0:.2f} s is damaged.")
                at = frame.pts if frame.pts is not None else frame.dts
                pixels = None
                while cursor < len(ticks) and at == ticks[cursor]:
                    pixels = _upright(frame, reformatter) if pixels is None else pixels
                    yield pixels
                    cursor += 1
                if cursor == len(ticks):
                    return
                if at is not None and at > ticks[cursor]:
                    break
        raise UnusableError(
            "damaged",
            f"{len(ticks) - cursor} of {len(ticks)} frames that the container lists do not come out of the decoder.",
        )


def _chunk_frames(found: Probe) -> int:
    return max(1, min(CHUNK_FRAMES_MAX, CHUNK_BYTES // (found.width * found.height * 3)))


def _upright(frame: Any, reformatter: Any) -> UInt8:
    """(H, W, 3), turned as the file says a player should."""
    pixels: UInt8 = reformatter.reformat(frame, format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90 % 4)) if frame.rotation else pixels


def _decord_message(error: Exception) -> str:
    """decord's message without the clock time, source line and path that make two runs differ."""
    text = str(error).split("\n")[0]
    text = re.sub(r"^\[[\d:]+\] \S+:\d+: (\[.*?\] )?", "", text)
    tail = text.split("Check failed:")[-1].rsplit(")", 1)[-1].strip() or text.strip()
    return tail[:160] or type(error).__name__
