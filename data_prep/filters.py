"""Optional filters on what is worth learning from: what is measured, and from which value on a clip is left out.

Each is off where its threshold is none, and then nothing is measured for it. Values are kept as columns of the cache,
so that another threshold needs no new decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from components.clip_model import ClipModel
from infra.config import Config


class Filters(Config):
    """Thresholds; all are off by default."""

    cuts: Literal["keep", "split", "reject"] = "keep"
    """Videos with shot cuts: left as they are, split into one clip a shot, or rejected. Finding cuts decodes the whole
    video, which costs several times a clip."""
    cut_threshold: float = Field(27.0, gt=0)
    """PySceneDetect's ContentDetector: mean change of hue, saturation and brightness from frame to frame, 0..255."""
    flow_min: float | None = Field(None, ge=0)
    """Below is too still: mean optical flow, frame widths a second. A tripod shot of an empty place has about 0.002."""
    flow_max: float | None = Field(None, gt=0)
    """Above is too fast; a brisk pan has about 0.5."""
    shake_max: float | None = Field(None, gt=0)
    """Above is too shaky: RMS change of the camera's velocity between frames, frame widths a second. Walking with a
    handheld camera gives about 0.05 to 0.2."""
    brightness_min: float | None = Field(None, ge=0, le=255)
    """Below is too dark: mean luma (BT.601), 0..255. 20 leaves night scenes in and fades to black out."""
    brightness_max: float | None = Field(None, ge=0, le=255)
    """Above is too bright; 240 is a white page."""
    side_min: int | None = Field(None, ge=1)
    """Pixels of the source's shorter side; the cache's size leaves out what would be enlarged."""
    seconds_min: float | None = Field(None, ge=0)
    """Length of the source."""
    seconds_max: float | None = Field(None, gt=0)
    """Length of the source."""
    caption_words_min: int | None = Field(None, ge=1)
    """Words of the caption; 3 leaves out file names and tags."""
    caption_words_max: int | None = Field(None, ge=1)
    """Words of the caption; the text encoder of Stable Diffusion reads about 55."""
    text_share_max: float | None = Field(None, ge=0, le=1)
    """Above has overlaid text: share of the picture within detected text, mean of three frames. Titles have 0.02 and
    more. Read at the source's resolution within the crop; below 128 pixels small letters are not found."""
    watermark_share_max: float | None = Field(None, ge=0, le=1)
    """Above has a watermark: share of the picture within text at the same place in the first, middle and last frame."""
    caption_match_min: float | None = Field(None, ge=-100, le=100)
    """Below the caption does not fit: 100 × cosine of CLIP embeddings, mean of three frames. For ViT-B-32 unrelated
    captions have about 15 to 20."""
    clip: ClipModel | None = None
    """Which CLIP model measures `caption_match`."""
    near_duplicate_bits: int | None = Field(None, ge=0, le=96)
    """Clips whose perceptual hashes (192 bits: first, middle and last frame) differ in at most so many bits are the
    same; the first in the cache's order stays. 12 finds copies of another size or compression."""

    @model_validator(mode="after")
    def _clip_is_named(self) -> Self:
        if self.caption_match_min is not None and self.clip is None:
            raise ValueError("caption_match_min needs a CLIP model: set clip")
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
    Rule("shake", "shake_max", False, "too_shaky", "The camera shakes by {value:.3f} widths a second"),
    Rule("brightness", "brightness_min", True, "too_dark", "The mean brightness is {value:.0f}"),
    Rule("brightness", "brightness_max", False, "too_bright", "The mean brightness is {value:.0f}"),
    Rule("text_share", "text_share_max", False, "overlaid_text", "Text covers {value:.1%} of the picture"),
    Rule(
        "watermark_share", "watermark_share_max", False, "watermark", "Standing text covers {value:.1%} of the picture"
    ),
    Rule("caption_match", "caption_match_min", True, "caption_mismatch", "The caption fits by {value:.1f}"),
)
SOURCE_RULES = (
    Rule("side", "side_min", True, "low_resolution", "The shorter side is {value:.0f} pixels"),
    Rule("seconds", "seconds_min", True, "source_too_short", "The video lasts {value:.1f} s"),
    Rule("seconds", "seconds_max", False, "source_too_long", "The video lasts {value:.1f} s"),
)
ROW_RULES = (
    Rule("words", "caption_words_min", True, "caption_too_few_words", "The caption has {value:.0f} words"),
    Rule("words", "caption_words_max", False, "caption_too_many_words", "The caption has {value:.0f} words"),
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
