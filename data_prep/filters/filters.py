"""Optional filters on what is worth learning from: what is measured, and from which value on a clip is left out.

Each is off where its threshold is none, and then nothing is measured for it. Values are kept as columns of the cache,
so that another threshold needs no new decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from components.clip.config import ClipModel
from infra.config import Config


class Filters(Config):
    """Thresholds; all are off by default. The figures are from drawn clips and a dozen of real ones."""

    cuts: Literal["keep", "split", "reject"] = "keep"
    """Videos with shot cuts: left as they are, split into one clip a shot, or rejected. Finding cuts decodes the whole
    video: at 854x480 pixels on one core a tenth of the time that it plays."""
    cut_threshold: float = Field(27.0, gt=0, le=255)
    """PySceneDetect's ContentDetector: mean change of hue, saturation and brightness from frame to frame, 0..255. Lower
    finds more: 27 is its own default and misses dissolves, 15 takes fast motion for cuts."""
    flow_min: float | None = Field(None, ge=0)
    """Below is too still: mean optical flow, frame widths a second. Still pictures have up to 0.002, a tripod before a
    breeze or one person 0.005 to 0.04; 0.003 leaves out stills. A `shot_type` moves the picture too."""
    flow_max: float | None = Field(None, gt=0)
    """Above is too fast, frame widths a second. A drive has 0.1, a brisk pan 0.5. Motion beyond a tenth of the width
    between two frames is not followed: at 8 frames a second no limit above 0.75 finds anything."""
    shake_max: float | None = Field(None, gt=0)
    """Above is too shaky: RMS second difference of the camera's path over an eighth of a second, frame widths. Tripods,
    drones and drives have up to 0.005; a camera that jumps by 1 % of the width around its path has 0.024. 0.02 leaves
    out what trembles. An object that fills most of the picture counts as camera: passing cars 0.01."""
    brightness_min: float | None = Field(None, ge=0, le=255)
    """Below is too dark: mean luma (BT.601), 0..255. 20 leaves night scenes in and fades to black out."""
    brightness_max: float | None = Field(None, ge=0, le=255)
    """Above is too bright; 240 is a white page."""
    side_min: int | None = Field(None, ge=1)
    """Pixels of the source's shorter side; the cache's size leaves out what would be enlarged."""
    seconds_min: float | None = Field(None, ge=0)
    """Length of the source. With `cuts: split` a clip is shorter than its source; `frames_min` holds for clips."""
    seconds_max: float | None = Field(None, gt=0)
    """Length of the source; 60 leaves out compilations and screen recordings."""
    caption_words_min: int | None = Field(None, ge=1)
    """Words of the caption; 3 leaves out file names and tags. Words are what spaces divide."""
    caption_words_max: int | None = Field(None, ge=1)
    """Words of the caption; the text encoder of Stable Diffusion reads about 55."""
    text_share_max: float | None = Field(None, ge=0, le=1)
    """Above has overlaid text: share of the picture within lines of text in any script, mean of three frames. A
    subtitle has 0.025 to 0.05, a channel's name in a corner 0.01 to 0.02, as a printed shirt; 0.02 keeps shirts, 0.005
    finds every line. Looked for at the source's resolution within the crop, at most 384 pixels: letters of 10 pixels
    there are found in 11 of 12 clips, half transparent ones in 9 of 12; below 128 pixels in fewer. 0.05 s a frame."""
    watermark_share_max: float | None = Field(None, ge=0, le=1)
    """Above has a watermark: share of the picture within text at the same place in the first, middle and last frame.
    0.005. A sign on a house, seen from a tripod, is one too, and the word on the shirt of someone who stands still."""
    caption_match_min: float | None = Field(None, ge=-100, le=100)
    """Below the caption does not fit: 100 × cosine of CLIP embeddings, mean of three frames. It depends on the model;
    for ViT-B-32 LAION-5B was cut at 28 and LAION-400M at 30. Look at the column before choosing."""
    clip: ClipModel | None = None
    """Which CLIP model measures `caption_match`."""
    near_duplicate_bits: int | None = Field(None, ge=0, le=24)
    """Clips whose perceptual hashes (192 bits: first, middle and last frame) differ in at most so many bits are the
    same; the first in the cache's order stays. 12 finds copies of another size, compression or brightness; the same
    person before the same wall differs in 38. Copies that are cropped or begin at another moment are others: with
    `window: random` copies of a long video show other moments. Flat pictures are all the same."""

    @model_validator(mode="after")
    def _clip_is_named(self) -> Self:
        if self.caption_match_min is not None and self.clip is None:
            raise ValueError("caption_match_min needs a CLIP model: set clip")
        return self

    @model_validator(mode="after")
    def _limits_in_order(self) -> Self:
        for name in ("flow", "brightness", "seconds", "caption_words"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name}_min {low:g} is above {name}_max {high:g}: nothing would be left")
        return self


@dataclass(frozen=True)
class Verdict:
    """Why a clip is left out."""

    reason: str
    message: str
    value: float


@dataclass(frozen=True)
class Rule:
    """A column, the threshold on it, and what is said of a clip beyond it."""

    column: str
    limit: str
    low: bool
    reason: str
    text: str


RULES = (
    Rule("flow", "flow_min", True, "too_still", "The picture moves {value:.4f} widths a second"),
    Rule("flow", "flow_max", False, "too_fast", "The picture moves {value:.3f} widths a second"),
    Rule("shake", "shake_max", False, "too_shaky", "The camera shakes by {value:.3f} of the width"),
    Rule("brightness", "brightness_min", True, "too_dark", "The mean brightness is {value:.1f}"),
    Rule("brightness", "brightness_max", False, "too_bright", "The mean brightness is {value:.1f}"),
    Rule("text_share", "text_share_max", False, "overlaid_text", "A share of {value:.3f} is text"),
    Rule("watermark_share", "watermark_share_max", False, "watermark", "A share of {value:.3f} is text that stays"),
    Rule("caption_match", "caption_match_min", True, "caption_mismatch", "The caption fits by {value:.1f}"),
)
SOURCE_RULES = (
    Rule("side", "side_min", True, "low_resolution", "The shorter side is {value:.0f} pixels"),
    Rule("seconds", "seconds_min", True, "too_short_source", "The video lasts {value:.2f} s"),
    Rule("seconds", "seconds_max", False, "too_long_source", "The video lasts {value:.2f} s"),
)
ROW_RULES = (
    Rule("words", "caption_words_min", True, "caption_too_short", "The caption has {value:.0f} words"),
    Rule("words", "caption_words_max", False, "caption_too_long_words", "The caption has {value:.0f} words"),
)


def needs(filters: Filters) -> frozenset[str]:
    """The columns that are measured."""
    columns = {rule.column for rule in RULES if getattr(filters, rule.limit) is not None}
    if filters.near_duplicate_bits is not None:
        columns.add("phash")
    if filters.cuts != "keep":
        columns.add("cuts")
    return frozenset(columns)


def judge_row(filters: Filters, caption: str) -> Verdict | None:
    """Before the video is opened."""
    return _judge(filters, ROW_RULES, {"words": len(caption.split())})


def judge_source(filters: Filters, width: int, height: int, seconds: float) -> Verdict | None:
    """Before a frame is decoded. Pixels, seconds."""
    return _judge(filters, SOURCE_RULES, {"side": min(width, height), "seconds": seconds})


def judge_measures(filters: Filters, values: Mapping[str, Any]) -> Verdict | None:
    """By what was measured, now or when a row was written. Near-duplicates are no matter of a single clip."""
    return _judge(filters, RULES, values)


def _judge(filters: Filters, rules: tuple[Rule, ...], values: Mapping[str, Any]) -> Verdict | None:
    for rule in rules:
        limit, value = getattr(filters, rule.limit), values.get(rule.column)
        if limit is None or value is None:
            continue
        if value < limit if rule.low else value > limit:
            bound = f"at least {limit:g} is asked for" if rule.low else f"at most {limit:g} is allowed"
            return Verdict(rule.reason, f"{rule.text.format(value=value)}; {bound}.", float(value))
    return None
