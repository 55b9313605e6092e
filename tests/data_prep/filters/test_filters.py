"""Thresholds: what is measured for them, which code and sentence a clip beyond them gets, and when."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from components.clip.config import ClipModel
from data_prep.config import CacheConfig
from data_prep.encode.clip_rows import MEASURED
from data_prep.filters.filters import Filters, Verdict, judge_measures, judge_row, judge_source, needs
from infra.config import apply_overrides
from infra.errors import UserError

CLIP = ClipModel(name="local-dir:nowhere")
ALL = Filters(
    cuts="reject",
    flow_min=0.01,
    flow_max=0.5,
    shake_max=0.02,
    brightness_min=20,
    brightness_max=240,
    side_min=240,
    seconds_min=2,
    seconds_max=60,
    caption_words_min=3,
    caption_words_max=5,
    text_share_max=0.02,
    watermark_share_max=0.005,
    caption_match_min=25,
    clip=CLIP,
    near_duplicate_bits=12,
)
GOOD = {
    "flow": 0.1,
    "shake": 0.001,
    "brightness": 120.0,
    "text_share": 0.0,
    "watermark_share": 0.0,
    "caption_match": 30.0,
}


def test_by_default_nothing_is_measured_and_nothing_rejected():
    off = Filters()
    assert needs(off) == frozenset()
    assert judge_row(off, "") is None
    assert judge_source(off, 1, 1, 0.0) is None
    assert judge_measures(off, dict.fromkeys(MEASURED, 0.0)) is None
    assert judge_measures(off, dict.fromkeys(MEASURED, 1e9)) is None


def test_what_is_on_is_measured_and_has_its_column():
    assert needs(ALL) == frozenset(MEASURED)
    for changes, columns in (
        ({"flow_min": 0.0}, {"flow"}),  # a threshold of nought is on: it keeps the column
        ({"flow_max": 1.0}, {"flow"}),
        ({"brightness_max": 200}, {"brightness"}),
        ({"near_duplicate_bits": 0}, {"phash"}),
        ({"cuts": "split"}, {"cuts"}),
        ({"caption_match_min": 0.0, "clip": CLIP}, {"caption_match"}),
        ({"side_min": 256, "seconds_min": 1, "caption_words_min": 2, "clip": CLIP}, set()),  # these need no column
    ):
        assert needs(Filters(**changes)) == columns


@pytest.mark.parametrize(
    ("values", "reason", "says"),
    [
        ({"flow": 0.004}, "too_still", "moves 0.0040 widths a second; at least 0.01 is asked for"),
        ({"flow": 0.6}, "too_fast", "0.600 widths a second; at most 0.5 is allowed"),
        ({"shake": 0.03}, "too_shaky", "by 0.030 of the width; at most 0.02"),
        ({"brightness": 19.6}, "too_dark", "19.6; at least 20"),
        ({"brightness": 250.0}, "too_bright", "250.0; at most 240"),
        ({"text_share": 0.04}, "overlaid_text", "0.040 is text; at most 0.02"),
        ({"watermark_share": 0.01}, "watermark", "0.010 is text that stays; at most 0.005"),
        ({"caption_match": 12.0}, "caption_mismatch", "12.0; at least 25"),
    ],
)
def test_a_clip_beyond_a_threshold_is_told_why(values: dict[str, float], reason: str, says: str):
    verdict = judge_measures(ALL, GOOD | values)
    assert verdict is not None
    assert verdict.reason == reason
    assert says in verdict.message
    assert [verdict.value] == list(values.values())
    assert judge_measures(Filters(), GOOD | values) is None


def test_what_is_at_a_threshold_stays():
    at = {"flow": 0.01, "shake": 0.02, "brightness": 240.0, "text_share": 0.02, "caption_match": 25.0}
    assert judge_measures(ALL, GOOD | at) is None


def test_a_row_of_a_cache_is_judged_as_it_is_read():
    row: dict[str, Any] = {"clip_id": "a", "cuts": None, "phash": "00" * 24, **GOOD}
    assert judge_measures(ALL, row) is None
    verdict = judge_measures(ALL.replace(flow_min=0.2), row)
    assert verdict is not None
    assert verdict.reason == "too_still"
    assert judge_measures(ALL.replace(flow_min=0.2), {**row, "flow": None}) is None  # not measured, so not judged


def test_captions_are_judged_by_their_words():
    assert judge_row(ALL, "a  red\tcircle ") is None
    assert judge_row(ALL, "IMG_0001 mp4") == Verdict(
        "caption_too_short", "The caption has 2 words; at least 3 is asked for.", 2.0
    )
    verdict = judge_row(ALL, "one two three four five six")
    assert verdict is not None
    assert (verdict.reason, verdict.value) == ("caption_too_long_words", 6.0)


def test_sources_are_judged_by_their_shorter_side_and_their_length():
    assert judge_source(ALL, 240, 1000, 2.0) is None
    found = {
        size: judge_source(ALL, *size)
        for size in ((1000, 239, 10.0), (239, 1000, 10.0), (640, 480, 1.96), (640, 480, 61.0))
    }
    assert [verdict and verdict.reason for verdict in found.values()] == [
        "low_resolution",
        "low_resolution",
        "too_short_source",
        "too_long_source",
    ]
    assert [verdict and verdict.value for verdict in found.values()] == [239, 239, 1.96, 61.0]
    short = found[(640, 480, 1.96)]
    assert short is not None
    assert short.message == "The video lasts 1.96 s; at least 2 is asked for."


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"caption_match_min": 25}, "set clip"),
        ({"flow_min": 0.5, "flow_max": 0.1}, "flow_min 0.5 is above flow_max 0.1"),
        ({"seconds_min": 9, "seconds_max": 3}, "nothing would be left"),
        ({"near_duplicate_bits": 97}, "less than or equal to 24"),
        ({"cuts": "drop"}, "'keep', 'split' or 'reject'"),
        ({"shake_min": 0.1}, "Extra inputs"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(changes: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        Filters(**changes)


def test_a_single_value_may_be_asked_for():
    assert judge_source(Filters(seconds_min=3, seconds_max=3), 64, 64, 3.0) is None


def test_filters_are_turned_on_from_the_command_line():
    config = apply_overrides(CacheConfig(), ["filters.flow_min=0.003", "filters.cuts=split"])
    assert needs(config.filters) == {"flow", "cuts"}
    with pytest.raises(UserError, match="must be|less than|greater than"):
        apply_overrides(CacheConfig(), ["filters.text_share_max=2"])
