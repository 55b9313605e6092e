"""What filters measure on a clip. F frames, H W pixels uint8 0..255; everything for itself, in the decoding process."""

from __future__ import annotations

from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.filters.filters import Filters, needs
from data_prep.problems import UnusableError

if TYPE_CHECKING:
    from components.clip.config import ClipModel

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

CUT_SIDE = 256  # pixels: PySceneDetect's own reduction before it compares frames
FLOW_SIDE = 128  # pixels: optical flow is measured on pictures that are no larger
SHAKE_SECONDS = 1 / 8  # between the three places of the camera that are compared; a hand trembles at 2 to 12 Hz
LUMA = (0.299, 0.587, 0.114)  # BT.601
TEXT_SIDE = 384  # pixels: at 256 some watermarks are missed, at 736 half of all scenes seem to have text
TEXT_SCORE_MIN, TEXT_RATIO_MIN = 0.6, 1.8  # a line of text is a long box; wheels, faces and balls give square ones


def measure(frames_FHWC: UInt8, fps: float, filters: Filters) -> dict[str, Any]:
    """The columns that the filters need, but `cuts`, `caption_match` and those of text."""
    columns = needs(filters)
    values: dict[str, Any] = {}
    if columns & {"flow", "shake"}:
        flow, shake = flow_and_shake(frames_FHWC, fps)
        values |= {"flow": flow, "shake": shake}
    if "brightness" in columns:
        values["brightness"] = brightness(frames_FHWC)
    if "phash" in columns:
        values["phash"] = perceptual_hash(frames_FHWC)
    return values


def measure_text(frames_3HWC: UInt8, filters: Filters) -> dict[str, float]:
    """`text_share` and `watermark_share` of three frames at the source's resolution, where the filters need them."""
    if not needs(filters) & {"text_share", "watermark_share"}:
        return {}
    masks_3HW = np.stack([_text_mask(frame) for frame in frames_3HWC])
    return {"text_share": float(masks_3HW.mean()), "watermark_share": float(masks_3HW.all(axis=0).mean())}


def find_cuts(path: Path, filters: Filters) -> list[tuple[float, float]]:
    """The shots of a video, one after the other: start and end in seconds from the first frame.

    PySceneDetect's ContentDetector, without its shortest shot: a flash or a shot of three frames between two cuts is a
    shot too, so that no shot has a cut inside. Its own loop is not used: it takes the first video stream, cover art
    included, converts frames at their full size, and turns to OpenCV, which knows no timestamps, where PyAV fails.

    Raises:
        UnusableError: the frames cannot be decoded.
    """
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:
            borders, end = _cut_times(container, filters.cut_threshold)
    except av.error.FFmpegError as error:
        raise UnusableError(
            "damaged", f"The file opens and its frames cannot all be decoded: {error.strerror}."
        ) from None
    return list(pairwise([0.0, *borders, end]))


def _cut_times(container: Any, threshold: float) -> tuple[list[float], float]:
    """Times of the frames that begin another shot, and of the video's end; seconds from the first frame."""
    import cv2
    from av.video.reformatter import VideoReformatter
    from scenedetect import ContentDetector, FrameTimecode

    cv2.setNumThreads(1)
    stream = container.streams.best("video")
    stream.thread_type = "NONE"
    scale = min(1.0, CUT_SIDE / max(stream.width, stream.height))
    width, height = (max(1, round(side * scale)) for side in (stream.width, stream.height))
    detector, shrink = ContentDetector(threshold=threshold, min_scene_len=0), VideoReformatter()
    times: list[float] = []
    borders: list[float] = []
    for frame in container.decode(stream):
        at = frame.pts if frame.pts is not None else frame.dts
        if at is None:
            continue
        times.append(float(at * stream.time_base))
        small = shrink.reformat(frame, width, height, "bgr24", interpolation="AREA", threads=1)
        if detector.process_frame(FrameTimecode(len(times) - 1, fps=1.0), small.to_ndarray()):
            borders.append(times[-1] - times[0])
    if not times:
        raise UnusableError("no_frames", "Not one frame comes out of the decoder.")
    last = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return borders, times[-1] - times[0] + last


def flow_and_shake(frames_FHWC: UInt8, fps: float) -> tuple[float, float]:
    """How fast the picture moves, and how much the camera trembles.

    Flow: mean length of the optical flow (DIS; Kroeger et al., ECCV 2016), frame widths a second. Shake: RMS of the
    second difference x(t - τ) - 2 x(t) + x(t + τ) of the camera's path, frame widths; τ is an eighth of a second, or
    one frame where frames are further apart. The path is the running sum of each pair's median flow, so an object that
    moves over less than half of the picture does not count, nor does a steady pan. The fixed τ makes clips of
    different frame rates comparable. 0 where there are too few frames.
    """
    import cv2

    cv2.setNumThreads(1)
    grey = [_grey(frame) for frame in frames_FHWC]
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    width = grey[0].shape[1]
    lengths, path = [], [np.zeros(2)]
    for one, other in pairwise(grey):
        flow_HW2 = finder.calc(one, other, np.zeros((*one.shape, 2), np.float32)).astype(np.float64) / width
        lengths.append(float(np.linalg.norm(flow_HW2, axis=-1).mean()))
        path.append(path[-1] + np.median(flow_HW2.reshape(-1, 2), axis=0))
    lag = max(1, round(SHAKE_SECONDS * fps))
    path_F2 = np.asarray(path)
    bends_F2 = path_F2[: -2 * lag] - 2 * path_F2[lag:-lag] + path_F2[2 * lag :]
    shake = float(np.sqrt((bends_F2**2).sum(axis=-1).mean())) if len(bends_F2) else 0.0
    return (float(np.mean(lengths)) * fps if lengths else 0.0), shake


def _grey(frame_HWC: UInt8) -> UInt8:
    import cv2

    height, width = frame_HWC.shape[:2]
    grey = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY)
    scale = FLOW_SIDE / max(height, width)
    if scale < 1:
        grey = cv2.resize(grey, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    return np.asarray(grey, dtype=np.uint8)


def brightness(frames_FHWC: UInt8) -> float:
    """Mean luma, 0..255."""
    import cv2

    return float(np.mean([cv2.mean(frame)[:3] for frame in frames_FHWC], axis=0) @ np.asarray(LUMA))


def perceptual_hash(frames_FHWC: UInt8) -> str:
    """48 hexadecimal digits: 64 bits (DCT) of the first, the middle and the last frame each."""
    import imagehash
    from PIL import Image

    return "".join(str(imagehash.phash(Image.fromarray(frame))) for frame in three(frames_FHWC))


def three(frames_FHWC: UInt8) -> UInt8:
    """The first, the middle and the last frame."""
    return frames_FHWC[three_places(len(frames_FHWC))]


def three_places(frames: int) -> list[int]:
    """Of the first, the middle and the last frame."""
    return [0, frames // 2, frames - 1]


def _text_mask(frame_HWC: UInt8) -> NDArray[np.bool_]:
    """Where lines of text are, in any script: nothing is read."""
    import cv2

    scale = min(1.0, TEXT_SIDE / min(frame_HWC.shape[:2]))
    small = cv2.resize(np.ascontiguousarray(frame_HWC), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = _text_finder()(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), use_det=True, use_cls=False, use_rec=False)
    mask = np.zeros(small.shape[:2], np.uint8)
    if found.boxes is not None:
        for box_42, score in zip(found.boxes, found.scores, strict=True):
            across, down = np.linalg.norm(box_42[1] - box_42[0]), np.linalg.norm(box_42[3] - box_42[0])
            if score >= TEXT_SCORE_MIN and max(across, down) >= TEXT_RATIO_MIN * min(across, down):
                cv2.fillPoly(mask, [np.asarray(box_42).round().astype(np.int32)], (1,))
    return mask.astype(bool)


@cache
def _text_finder() -> Any:
    """The detection model that rapidocr carries in its package; it enlarges smaller pictures itself."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.limit_side_len": TEXT_SIDE,
        }
    )


class CaptionMatch:
    """How well captions fit clips, by CLIP."""

    def __init__(self, model: ClipModel, device: str) -> None:
        from components.clip.clip import ClipEncoder

        self._encoder = ClipEncoder(model, device)

    def __call__(self, frames_FHWC: UInt8, caption: str) -> float:
        """100 × cosine, mean of three frames."""
        return float(
            100 * (self._encoder.encode_images(three(frames_FHWC)) @ self._encoder.encode_text(caption)).mean()
        )


def near_duplicates(clip_ids: list[str], phashes: list[str], bits: int) -> dict[str, str]:
    """Clips that differ from an earlier one, in the given order, by at most `bits` bits, and the first such one.

    Whether the earlier one is itself a near-duplicate does not matter. A million clips take seconds (8 bits) to a
    minute (16 bits).
    """
    if not clip_ids:
        return {}
    bytes_NB = np.frombuffer(bytes.fromhex("".join(phashes)), np.uint8).reshape(len(phashes), -1)
    _, firsts, hash_of = np.unique(bytes_NB, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(firsts)  # of the different hashes, by the first clip that has each
    firsts, place_of = firsts[order], np.argsort(order)
    original_of = firsts[_first_near(bytes_NB[firsts], bits)][place_of[hash_of]]
    later = np.flatnonzero(original_of < np.arange(len(clip_ids)))
    return {clip_ids[place]: clip_ids[original] for place, original in zip(later, original_of[later], strict=True)}


def _first_near(codes_NB: UInt8, bits: int) -> NDArray[np.int64]:
    """Of each code the place of the first one within `bits`, which may be itself. All codes differ.

    By the pigeonhole principle two codes within `bits`, cut into `bits + 1` parts, agree in one of them, and in two of
    `bits + 2`: only those are compared. Two together are needed where one is too short to tell many codes apart.
    """
    count, words_NW = len(codes_NB), codes_NB.view(np.uint64)
    first = np.arange(count)
    if bits == 0:
        return first
    agree = 1 if codes_NB.shape[1] * 8 / (bits + 1) >= np.log2(count) else 2
    for parts in combinations(np.array_split(np.arange(codes_NB.shape[1] * 8), bits + agree), agree):
        keys = _key(codes_NB, np.concatenate(parts))
        order = np.argsort(keys)
        ends = np.append(np.flatnonzero(np.diff(keys[order])) + 1, count)
        end_of = np.repeat(ends, np.diff(ends, prepend=0))
        here = np.arange(count)
        for step in range(1, count):
            here = here[here + step < end_of[here]]
            if not len(here):
                break
            one, other = order[here], order[here + step]
            near = np.bitwise_count(words_NW[one] ^ words_NW[other]).sum(axis=1) <= bits
            one, other = one[near], other[near]
            np.minimum.at(first, np.maximum(one, other), np.minimum(one, other))
    return first


def _key(codes_NB: UInt8, part: NDArray[np.int64]) -> NDArray[np.uint64]:
    """These bits of each code as a number; the first 64 where there are more."""
    key_N8 = np.zeros((len(codes_NB), 8), np.uint8)
    for place, bit in enumerate(part[:64].tolist()):
        key_N8[:, place // 8] |= (codes_NB[:, bit // 8] >> np.uint8(7 - bit % 8) & np.uint8(1)) << np.uint8(place % 8)
    return key_N8.view(np.uint64)[:, 0]
