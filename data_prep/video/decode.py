"""One video to its clips: sampled frames, cropped to the training size. F frames, H W pixels, uint8 0..255.

`decode_video` runs in a child process (`data_prep.video.child_process`): decoders can crash and, rarely, hang on
damaged files.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.config import ShotMove, ShotType
from data_prep.filters.filters import Filters, judge_measures, judge_source
from data_prep.problems import UnusableError
from data_prep.video.probe import Probe, probe
from data_prep.video.readers import NotReadableError, readers
from data_prep.video.sampling import indices_by_stride, indices_by_time, window
from data_prep.video.shot_types import crop_path, frames_before_blur

if TYPE_CHECKING:
    from data_prep.config import CacheConfig

UInt8 = NDArray[np.uint8]
Indices = NDArray[np.int64]

SAME_SECONDS = 1e-6  # times of one frame, reckoned twice
FPS_SLACK = 0.99  # 7.99 frames a second pass for 8


@dataclass(frozen=True)
class DecodeRequest:
    """What is to be made of one file."""

    clip_id: str
    """The video's id."""
    path: Path
    size: int
    fps: float
    stride: int | None
    frames_min: int
    frames_max: int
    shot_type: ShotType
    move: ShotMove
    window: str
    seed: int
    filters: Filters


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
        move=config.move,
        window=config.window,
        seed=config.seed,
        filters=config.filters,
    )


@dataclass(frozen=True)
class DecodedClip:
    """A clip in pixels."""

    frames_FHWC: UInt8
    decoder: str
    """`decord` or `pyav`."""
    source_fps: float
    source_frames: int
    source_width: int
    """Pixels, upright."""
    source_height: int
    duration: float
    """Of the video, seconds."""
    fps: float
    source_indices: list[int]
    crop: list[int]
    motion: float
    shot: int | None = None
    """Of a video that is split at its cuts, from 0."""
    measures: dict[str, Any] = field(default_factory=dict)
    """What filters that are on measured, by column."""


@dataclass(frozen=True)
class Refused:
    """The video, or a shot of it, is of no use, with the reason."""

    reason: str
    message: str
    stage: Literal["decode", "filter", "encode"] = "decode"
    value: float | None = None
    """What a filter measured."""
    shot: int | None = None


def prepare() -> None:
    """The imports and settings of a process that decodes."""
    import av  # noqa: F401
    import decord
    import torch

    import data_prep.video.crop  # noqa: F401
    from infra.runtime import keep_freed_memory

    keep_freed_memory()
    if sys.platform == "linux":  # waking up, it pushes no encoder off its CPU: 5 % more frames a second on two CPUs
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    torch.set_num_threads(1)
    decord.logging.set_level(decord.logging.QUIET)


def decode_video(request: DecodeRequest) -> list[DecodedClip | Refused]:
    """The clip of a video, or why there is none; one of each shot where videos are split at their cuts."""
    filters = request.filters
    try:
        found = probe(request.path)
        if verdict := judge_source(filters, found.width, found.height, found.duration):
            return [Refused(verdict.reason, verdict.message, "filter", verdict.value)]
        if filters.cuts == "keep":
            return [_clip(found, request)]
        shots = _shots(found, request)
        if filters.cuts == "split":
            return [_shot(found, request, place, shot) for place, shot in enumerate(shots)]
        cuts = len(shots) - 1
        if cuts:
            return [Refused("has_cuts", f"The video has {cuts} cuts; none is allowed.", "filter", float(cuts))]
        return [_clip(found, request, cuts=0)]
    except UnusableError as error:
        return [Refused(error.reason, error.message)]


def _shots(found: Probe, request: DecodeRequest) -> list[Indices]:
    """The frames of each shot; one shot with all of them where there is no cut."""
    from data_prep.filters.measures import find_cuts

    since = found.times - found.times[0]
    spans = find_cuts(request.path, request.filters) or [(0.0, float("inf"))]
    ends = [end for _, end in spans[:-1]]
    borders = [0, *(int(np.searchsorted(since, end - SAME_SECONDS)) for end in ends), len(since)]
    shots = [np.arange(first, last) for first, last in pairwise(borders)]
    return [shot for shot in shots if len(shot)]


def _shot(found: Probe, request: DecodeRequest, place: int, frames: Indices) -> DecodedClip | Refused:
    mine = replace(request, clip_id=f"{request.clip_id}#{place:03d}")
    try:
        clip = _clip(found, mine, frames, cuts=0)
    except UnusableError as error:
        return Refused(error.reason, error.message, shot=place)
    return replace(clip, shot=place)


def _clip(
    found: Probe, request: DecodeRequest, frames: Indices | None = None, cuts: int | None = None
) -> DecodedClip | Refused:
    """The clip of all frames, or of the given ones in a row.

    Raises:
        UnusableError: they cannot be decoded, or are too few.
    """
    from data_prep.filters.measures import measure

    places = np.arange(len(found.times)) if frames is None else frames
    indices, fps = sample(replace(found, ticks=found.ticks[places], times=found.times[places]), request)
    clip = _decode(found, places[indices], fps, request)
    measures = clip.measures | measure(clip.frames_FHWC, clip.fps, request.filters)
    if verdict := judge_measures(request.filters, measures):
        return Refused(verdict.reason, verdict.message, "filter", verdict.value)
    clip.measures.update(measures if cuts is None else {"cuts": cuts, **measures})
    return clip


def sample(found: Probe, request: DecodeRequest) -> tuple[Indices, float]:
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


def _decode(found: Probe, indices: Indices, fps: float, request: DecodeRequest) -> DecodedClip:
    for reader in readers(request.path, found):
        try:
            return _read(reader.name, reader.chunks, found, indices, fps, request)
        except NotReadableError:
            continue
    raise AssertionError("the last reader always answers")


def _read(
    name: str,
    chunks: Callable[[Indices], Iterator[UInt8]],
    found: Probe,
    indices: Indices,
    fps: float,
    request: DecodeRequest,
) -> DecodedClip:
    from data_prep.filters.measures import measure_text, three_places
    from data_prep.video.crop import crop_frames, with_square_pixels

    cropped: list[UInt8] = []
    looked_at: list[UInt8] = []  # for text, which a crop at the training size is too small to show
    size, first = None, 0
    for stored in chunks(indices):
        chunk = with_square_pixels(stored, found)
        if size is None:
            height, width = size = chunk.shape[1:3]
            indices = indices[: _frames_for_shot(request, width, height, fps, len(indices))]
            path = crop_path(request.shot_type, width, height, len(indices), fps, request.move)
        elif chunk.shape[1:3] != size:
            raise UnusableError("size_changes", f"The picture changes from {size[1]}x{size[0]} to another size.")
        cropped.append(crop_frames(chunk[: len(indices) - first], path, request.size, first))
        left, top, side, _ = path.first_box()
        places = [place - first for place in three_places(len(indices)) if first <= place < first + len(chunk)]
        looked_at += [chunk[place, top : top + side, left : left + side].copy() for place in places]
        first += len(chunk)
        if first >= len(indices):
            break
    frames_FHWC = np.concatenate(cropped)
    return DecodedClip(
        frames_FHWC=frames_FHWC,
        decoder=name,
        source_fps=found.fps,
        source_frames=len(found.times),
        source_width=width,
        source_height=height,
        duration=found.duration,
        fps=fps,
        source_indices=indices.tolist(),
        crop=path.first_box(),
        motion=motion(frames_FHWC),
        measures=measure_text(np.stack(looked_at), request.filters),
    )


def _frames_for_shot(request: DecodeRequest, width: int, height: int, fps: float, available: int) -> int:
    """A zoom ends before its crop is smaller than the training size; the shortest clip it always gets."""
    sharp = frames_before_blur(request.shot_type, width, height, request.size, fps, request.move)
    return available if sharp is None else min(available, max(sharp, request.frames_min))


def motion(frames_FHWC: UInt8) -> float:
    """Mean absolute change of a pixel from a frame to the next, 0..255; 0 for a single frame."""
    if len(frames_FHWC) < 2:
        return 0.0
    import cv2

    now, before = frames_FHWC[1:], frames_FHWC[:-1]
    return cv2.norm(now.reshape(-1), before.reshape(-1), cv2.NORM_L1) / now.size
