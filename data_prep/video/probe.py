"""What a video file says about itself, read without decoding a frame. Reasons here are for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.problems import UnusableError
from data_prep.video.sampling import Seconds

SIDE_MIN = 8  # pixels: a VAE latent
HDR_CURVES = {16: "PQ, SMPTE ST 2084", 18: "HLG, ARIB STD-B67"}
"""Transfer characteristics by their number in ITU-T H.273."""
COVERED_MIN = 0.9  # of the stated length, for containers that state no frame count


@dataclass(frozen=True)
class Probe:
    """One video stream."""

    container: str
    """FFmpeg's name for the format, whatever the file is called."""
    codec: str
    width: int
    """Pixels as they are stored; a display matrix may turn the picture."""
    height: int
    pixel_aspect: float
    """Width of a pixel as it is shown, in heights; 1 is square."""
    ticks: NDArray[np.int64]
    """Presentation times of the frames that are to be shown, in the stream's time base, in order."""
    times: Seconds
    """The same in seconds."""

    @property
    def fps(self) -> float:
        """Frames a second, from the times; 0 for a single frame."""
        span = float(self.times[-1] - self.times[0])
        return (len(self.times) - 1) / span if span > 0 else 0.0

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which lasts as long as most do."""
        typical = float(np.median(np.diff(self.times))) if len(self.times) > 1 else 0.0
        return float(self.times[-1] - self.times[0]) + typical


def probe(path: Path) -> Probe:
    """Reads the container and its packets.

    Raises:
        UnusableError: empty, no video, nothing in it, a few pixels small, cut short, HDR.
    """
    import av

    if path.stat().st_size == 0:
        raise UnusableError("empty_file", "The file has no bytes.")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return _read(container, path)
    except av.error.FFmpegError as error:
        raise UnusableError("not_a_video", f"No video container can be read from the file: {error.strerror}.") from None


def _read(container: Any, path: Path) -> Probe:
    stream = container.streams.best("video")
    if stream is None:
        kinds = ", ".join(sorted({part.type for part in container.streams}))
        what = f"only {kinds}" if kinds else "no stream at all"
        raise UnusableError("no_video_stream", f"There is no picture in the file: it holds {what}.")
    if stream.codec_context is None:
        raise UnusableError(
            "unsupported_codec", "Nothing here can decode the video stream; encode it again, to H.264 for example."
        )
    if min(stream.width, stream.height) < SIDE_MIN:
        raise UnusableError("too_small", f"The picture is {stream.width}x{stream.height} pixels.")
    codec = stream.codec_context.codec.canonical_name
    if (curve := HDR_CURVES.get(stream.codec_context.color_trc)) is not None:
        raise UnusableError(
            "hdr", f"The video is HDR ({curve}), and would come out washed out; tone-map it to BT.709 first."
        )
    ticks, packets = _presentation_ticks(container, stream)
    times = np.asarray(ticks * float(stream.time_base), dtype=np.float64)
    if len(times) == 0:
        raise UnusableError("no_frames", f"The file has a header ({codec}) and not one frame behind it.")
    _refuse_cut(container, stream, times, packets, path)
    aspect = float(stream.sample_aspect_ratio or 1)
    return Probe(container.format.name, codec, stream.width, stream.height, aspect, ticks, times)


def _presentation_ticks(container: Any, stream: Any) -> tuple[NDArray[np.int64], int]:
    """Times of the frames to be shown, and the number of all that are read: an edit list hides those before its start,
    down to the keyframe."""
    ticks, packets = [], 0
    for packet in container.demux(stream):  # one at a time: each holds its part of the file
        packets += packet.size > 0
        if packet.size and not packet.is_discard:
            ticks.append(packet.pts if packet.pts is not None else packet.dts)
    known = [tick for tick in ticks if tick is not None]
    return np.sort(np.asarray(known, dtype=np.int64)), packets


def _refuse_cut(container: Any, stream: Any, times: Seconds, packets: int, path: Path) -> None:
    if stream.frames > packets and stream.frames > (held := _packets_of_all(path)):
        raise UnusableError("truncated", f"The file states {stream.frames} frames and holds {held}: it was cut short.")
    if stream.frames or container.duration is None or len(container.streams) > 1:
        return  # beside other streams the stated length may be theirs
    stated = container.duration / 1_000_000
    if times[-1] < COVERED_MIN * stated - 1:
        raise UnusableError("truncated", f"The file states {stated:.1f} s and its frames end at {times[-1]:.1f} s.")


def _packets_of_all(path: Path) -> int:
    """Frames in the file, with those that lie before a keyframe that an edit list makes the first."""
    import av

    with av.open(str(path), metadata_errors="replace", options={"ignore_editlist": "1"}) as container:
        stream = container.streams.best("video")
        return sum(1 for packet in container.demux(stream) if packet.size)
