"""One video to one clip: sampled frames, cropped to the training size. F frames, H W pixels, uint8 0..255.

`decode_clip` runs in a child process (see `data_prep.child`): decord 0.6 can crash and, rarely, hang on damaged files.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.probe import Probe, UnusableError, probe
from data_prep.sampling import indices_by_stride, indices_by_time, window
from data_prep.shot_types import ShotType, crop_path, frames_before_blur

if TYPE_CHECKING:
    from data_prep.build import CacheConfig

UInt8 = NDArray[np.uint8]

CHUNK = 8  # frames decoded at the source's resolution at a time
FPS_SLACK = 0.99  # 7.99 frames a second pass for 8


@dataclass(frozen=True)
class DecodeRequest:
    """What is to be made of one file."""

    clip_id: str
    path: Path
    size: int
    fps: float
    stride: int | None
    frames_min: int
    frames_max: int
    shot_type: ShotType
    window: str
    seed: int


def request_for(config: CacheConfig, clip_id: str, path: Path) -> DecodeRequest:
    """What a cache of this config asks of a file."""
    return DecodeRequest(
        clip_id=clip_id,
        path=path,
        size=config.size,
        fps=config.fps,
        stride=config.stride,
        frames_min=config.frames_min,
        frames_max=config.frames_max,
        shot_type=config.shot_type,
        window=config.window,
        seed=config.seed,
    )


@dataclass(frozen=True)
class DecodedClip:
    """A clip in pixels."""

    frames_FHWC: UInt8
    source_fps: float
    source_frames: int
    fps: float
    source_indices: list[int]
    crop: list[int]
    motion: float


@dataclass(frozen=True)
class Refused:
    """The video is of no use, with the reason."""

    reason: str
    message: str


def prepare() -> None:
    """The imports and settings of a process that decodes."""
    import av  # noqa: F401
    import decord
    import torch

    import data_prep.crop  # noqa: F401

    torch.set_num_threads(1)
    decord.logging.set_level(decord.logging.QUIET)


def decode_clip(request: DecodeRequest) -> DecodedClip | Refused:
    """The clip, or why there is none."""
    try:
        found = probe(request.path)
        indices, fps = sample(found, request)
        return _decode(found, indices, fps, request)
    except UnusableError as error:
        return Refused(error.reason, error.message)


def sample(found: Probe, request: DecodeRequest) -> tuple[NDArray[np.int64], float]:
    """Indices of the frames of the clip, and its frames a second.

    Raises:
        UnusableError: too few frames for the shortest clip, or fewer a second than the clip shall have.
    """
    if request.stride is None:
        if len(found.times) > 1 and found.fps < FPS_SLACK * request.fps:
            raise UnusableError(
                "fps_too_low",
                f"The video has {found.fps:.2f} frames a second; at {request.fps:g} some would be shown twice.",
            )
        indices, fps = indices_by_time(found.times, request.fps), request.fps
        how = f"at {request.fps:g} a second"
    else:
        indices, fps = indices_by_stride(len(found.times), request.stride), found.fps / request.stride
        how = f"taking every {request.stride}."
    if len(indices) < request.frames_min:
        raise UnusableError(
            "too_short",
            f"The video gives {len(indices)} frames ({len(found.times)} in the file, {how}); "
            f"at least {request.frames_min} are needed.",
        )
    return window(indices, request.frames_max, _first(request, len(indices))), fps


def _first(request: DecodeRequest, available: int) -> int:
    """Place of the first sampled frame: 0, or drawn from (seed, clip id)."""
    if request.window == "first" or available <= request.frames_max:
        return 0
    digest = hashlib.sha256(f"{request.seed}\0{request.clip_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (available - request.frames_max + 1)


def _decode(found: Probe, indices: NDArray[np.int64], fps: float, request: DecodeRequest) -> DecodedClip | Refused:
    import decord

    from data_prep.crop import crop_frames

    try:
        # Without fault_tol=1 decord repeats the last good frame where decoding fails, and says nothing. One thread a
        # reader: more deliver the same frames with more memory.
        reader = decord.VideoReader(str(request.path), num_threads=1, fault_tol=1)
        if len(reader) != len(found.times):
            return Refused(
                "frame_count",
                f"The container holds {len(found.times)} frames to show and decord counts {len(reader)}: an edit list "
                "or hidden frames; frames would be repeated. Encode the video again.",
            )
        height, width = reader[int(indices[0])].shape[:2]
        indices = indices[: _frames_for_shot(request, width, height, fps, len(indices))]
        path = crop_path(request.shot_type, width, height, len(indices), fps)
        frames_FHWC = np.concatenate(
            [
                crop_frames(reader.get_batch(indices[i : i + CHUNK].tolist()).asnumpy(), path, request.size, i)
                for i in range(0, len(indices), CHUNK)
            ]
        )
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
        if "size must exactly match" in str(error):
            return Refused(
                "too_small",
                "decord 0.6 takes the padding of narrow pictures (such as 48 or 72 pixels) for a fourth colour on this "
                "processor and cannot hand them out; scale the video to 80 pixels or more.",
            )
        return Refused("damaged", f"The file opens and its frames cannot all be decoded: {_last_words(error)}")
    return DecodedClip(
        frames_FHWC=frames_FHWC,
        source_fps=found.fps,
        source_frames=len(found.times),
        fps=fps,
        source_indices=indices.tolist(),
        crop=path.first_box(),
        motion=motion(frames_FHWC),
    )


def _frames_for_shot(request: DecodeRequest, width: int, height: int, fps: float, available: int) -> int:
    """A zoom ends before its crop is smaller than the training size; the shortest clip it always gets."""
    sharp = frames_before_blur(request.shot_type, width, height, request.size, fps)
    return available if sharp is None else min(available, max(sharp, request.frames_min))


def motion(frames_FHWC: UInt8) -> float:
    """Mean absolute change of a pixel from a frame to the next, 0..255; 0 for a single frame."""
    if len(frames_FHWC) < 2:
        return 0.0
    signed = frames_FHWC.astype(np.int16)
    return float(np.abs(np.diff(signed, axis=0)).mean())


def _last_words(error: Exception) -> str:
    """decord's message without the clock time, source line and path that make two runs differ."""
    text = str(error).split("\n")[0]
    text = re.sub(r"^\[[\d:]+\] \S+:\d+: (\[.*?\] )?", "", text)
    tail = text.split("Check failed:")[-1].rsplit(")", 1)[-1].strip() or text.strip()
    return tail[:160] or type(error).__name__
