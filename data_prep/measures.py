"""What filters measure on a clip. F frames, H W pixels uint8 0..255; everything for itself, in the decoding process."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.filters import Filters, needs

if TYPE_CHECKING:
    from components.clip_model import ClipModel

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float64]

FLOW_SIDE = 128  # pixels: optical flow is measured on pictures that are no larger
TEXT_SIDE = 256  # pixels of the shorter side: enough to read titles and watermarks, 0.3 s a frame on one core
TEXT_SCORE_MIN, TEXT_LETTERS_MIN = 0.8, 2  # a wheel is a fine letter O
HASH_BITS = 64
LUMA = (0.299, 0.587, 0.114)  # BT.601
SHOT_FRAMES_MIN = 8  # a shorter shot is taken for a flash, not for a shot


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
    """The shots of a video, seconds from its first frame; none where there is no cut.

    The whole video is decoded, by PyAV, which knows the frames' own times.
    """
    import logging

    from scenedetect import ContentDetector, SceneManager, open_video

    logging.getLogger("pyscenedetect").setLevel(logging.ERROR)
    manager = SceneManager()
    manager.add_detector(ContentDetector(threshold=filters.cut_threshold, min_scene_len=SHOT_FRAMES_MIN))
    manager.detect_scenes(open_video(str(path), backend="pyav"))
    return [(start.seconds, end.seconds) for start, end in manager.get_scene_list(start_in_scene=False)]


def flow_and_shake(frames_FHWC: UInt8, fps: float) -> tuple[float, float]:
    """Mean length of the optical flow (DIS), and RMS change of the camera's velocity from a pair of frames to the next:
    both in frame widths a second. The camera's velocity is the median flow of a pair. 0 where there are too few frames.
    """
    import cv2

    cv2.setNumThreads(1)
    grey = [_grey(frame) for frame in frames_FHWC]
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    width = grey[0].shape[1]
    lengths, camera = [], []
    for one, other in pairwise(grey):
        flow_HW2 = finder.calc(one, other, np.zeros((*one.shape, 2), np.float32)).astype(np.float64) * fps / width
        lengths.append(float(np.linalg.norm(flow_HW2, axis=-1).mean()))
        camera.append(np.median(flow_HW2.reshape(-1, 2), axis=0))
    jumps = np.diff(np.asarray(camera), axis=0) if len(camera) > 1 else np.zeros((1, 2))
    return (float(np.mean(lengths)) if lengths else 0.0), float(np.sqrt((jumps**2).sum(axis=-1).mean()))


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
    return float(frames_FHWC.reshape(-1, 3).mean(axis=0) @ np.asarray(LUMA))


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
    """Where text is read: what only looks like text to the detector, such as a blurred flower, cannot be read."""
    import cv2

    scale = min(1.0, TEXT_SIDE / min(frame_HWC.shape[:2]))
    small = cv2.resize(np.ascontiguousarray(frame_HWC), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = _text_reader()(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), use_det=True, use_cls=False, use_rec=True)
    mask = np.zeros(small.shape[:2], np.uint8)
    if found.boxes is not None and found.txts is not None:
        for box, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            if score >= TEXT_SCORE_MIN and sum(char.isalnum() for char in text) >= TEXT_LETTERS_MIN:
                cv2.fillPoly(mask, [np.asarray(box).round().astype(np.int32)], (1,))
    return mask.astype(bool)


@cache
def _text_reader() -> Any:
    """The models that rapidocr carries in its package."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


class CaptionMatch:
    """How well captions fit clips, by CLIP."""

    def __init__(self, model: ClipModel, device: str) -> None:
        from components.clip import ClipEncoder

        self._encoder = ClipEncoder(model, device)

    def __call__(self, frames_FHWC: UInt8, caption: str) -> float:
        """100 × cosine, mean of three frames."""
        return float(100 * (self._encoder.images(three(frames_FHWC)) @ self._encoder.text(caption)).mean())


def near_duplicates(clip_ids: list[str], phashes: list[str], bits: int) -> dict[str, str]:
    """Clips that differ from an earlier one, in the given order, by at most `bits` bits, and the first such one.

    Whether the earlier one is itself a near-duplicate does not matter. By the pigeonhole principle two hashes that near
    agree in one of `bits + 1` parts; only those that do are compared.
    """
    if not clip_ids:
        return {}
    codes_NB = np.unpackbits(np.frombuffer(bytes.fromhex("".join(phashes)), np.uint8).reshape(len(phashes), -1), axis=1)
    found: dict[int, int] = {}
    for part in np.array_split(np.arange(codes_NB.shape[1]), bits + 1):
        keys = np.packbits(codes_NB[:, part], axis=1)
        order = np.lexsort(keys.T[::-1])  # stable: clips of one key stay in their order
        ends = np.flatnonzero(np.any(np.diff(keys[order], axis=0), axis=1)) + 1
        for group in np.split(order, ends):
            _pairs(np.sort(group), codes_NB, bits, found)
    return {clip_ids[later]: clip_ids[earlier] for later, earlier in sorted(found.items())}


def _pairs(group: NDArray[np.int64], codes_NB: UInt8, bits: int, found: dict[int, int]) -> None:
    for place in range(1, len(group)):
        apart = (codes_NB[group[:place]] != codes_NB[group[place]]).sum(axis=1)
        near = np.flatnonzero(apart <= bits)
        if len(near):
            later, earlier = int(group[place]), int(group[near[0]])
            found[later] = min(earlier, found.get(later, earlier))
