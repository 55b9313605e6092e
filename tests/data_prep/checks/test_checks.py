"""The suites find what range checks miss, name the expectation, and leave pages that need no network."""

import math
import re
from pathlib import Path

import pyarrow as pa
import pytest

from data_prep.cache.rows import CACHE_SCHEMA
from data_prep.checks.checks import check_manifest, check_source
from data_prep.checks.data_docs import plain, write_index
from data_prep.config import CacheConfig
from data_prep.sources.sources import Problem, SourceRow
from tests.data_prep.cache_files import cache_row

HOSTILE = '<script>alert(1)</script><img src="http://evil/x.png" onerror="alert(2)">'


def row(clip_id: str, caption: str = "a cat", duration: str = "PT5S", url: str = "") -> SourceRow:
    return SourceRow(clip_id, caption, f"{clip_id}.mp4", Path("x"), None, duration, url)


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def failed(docs: Path) -> dict[int, tuple[str, str]]:
    rows = [
        row("1", "NA"),
        row("2", "  "),
        row("1"),
        row("3", duration="PT99"),
        row("4", duration="PT00H00M17S", url="https://h/4.mp4"),
        row("5", url="file:///etc/hostname"),
        row(""),
        row("6", "x" * 10_001),
        row("7", duration=HOSTILE),
        SourceRow("8", "", "", problem=Problem("malformed_row", "broken")),
        row("9", duration=""),
        row("1", ""),
    ]
    return {place: (found.reason, found.message) for place, found in check_source(rows, docs).items()}


def test_failing_rows_have_their_reason(failed: dict[int, tuple[str, str]]):
    assert {place: reason for place, (reason, _) in failed.items()} == {
        1: "empty_caption",
        2: "duplicate_id",
        3: "bad_duration",
        5: "bad_url",
        6: "empty_id",
        7: "caption_too_long",
        8: "bad_duration",
        11: "duplicate_id",
    }


def test_the_message_names_value_and_expectation(failed: dict[int, tuple[str, str]]):
    assert "'PT99'" in failed[3][1]
    assert failed[3][1].endswith("[expect_column_values_to_match_regex(duration)]")
    assert failed[2][1].endswith("[expect_column_values_to_be_unique(clip_id)]")


def test_the_pages_fetch_and_run_nothing(failed: dict[int, tuple[str, str]], docs: Path):
    write_index(docs)
    pages = sorted(docs.iterdir())
    assert [page.name for page in pages] == ["index.html", "source-expectations.html", "source.html"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "default-src 'none'" in text
        assert not re.search(r"<(script|link|iframe)\b|(src|href)=\"https?://[^\"]*\.(js|css|png)", text, re.IGNORECASE)
    links = re.findall(r'href="([^"#]+)"', (docs / "index.html").read_text(encoding="utf-8"))
    assert links
    assert all((docs / link).is_file() for link in links)
    assert "PT99" in (docs / "source.html").read_text(encoding="utf-8")


def test_plain_keeps_text_and_drops_scripts():
    page = f"<html><head><title>x</title></head><body><p>kept</p>{HOSTILE}</body></html>"
    assert "kept" in plain(page, "source")
    assert "alert(1)" not in plain(page, "source")
    assert "evil" not in plain(page, "source")


def test_a_manifest_with_everything_wrong(tmp_path: Path):
    good = cache_row(0, 16)
    bad = {
        "motion": math.nan, "fps": math.inf, "source_fps": -1.0, "caption": None, "source_frames": 0,
        "latents_shape": [3, 4, 2, 3], "content_sha256": None,
    }  # fmt: skip
    rows = [good, *({**cache_row(place, 16), name: value} for place, (name, value) in enumerate(bad.items(), 1))]
    found = check_manifest(pa.Table.from_pylist(rows, schema=CACHE_SCHEMA), CacheConfig(frames_min=8), tmp_path)
    assert {place: rejection.reason for place, rejection in found.items()} == {
        1: "null_motion",
        2: "fps_out_of_range",
        3: "source_fps_out_of_range",
        4: "null_caption",
        5: "source_frames_out_of_range",
        6: "frames_out_of_range",
        7: "null_content_sha256",
    }
    assert all(rejection.stage == "check" for rejection in found.values())


def test_an_empty_manifest_has_no_row_to_reject(tmp_path: Path):
    assert check_manifest(CACHE_SCHEMA.empty_table(), CacheConfig(), tmp_path) == {}
    assert "1" in (tmp_path / "latent-cache.html").read_text(encoding="utf-8")
