"""A cache brought up to date: exactly what changed is encoded, and the log and the record say so."""

from __future__ import annotations

import csv
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_prep.builder.build import build_latent_cache
from data_prep.cache.shards import shard_paths
from data_prep.cache.verify import verify
from data_prep.config import CacheConfig
from infra.artifacts.artifacts import Artifact
from infra.errors import UserError
from infra.pocket.clips import write_clips
from tests.data_prep.builder.building import rows_of

CONFIG = CacheConfig(size=32, frames_max=16, shard_videos=4, workers=1)


class Footage:
    """A WebVid table and its videos, to be changed."""

    def __init__(self, folder: Path) -> None:
        self.table = folder / "clips.csv"
        with self.table.open(newline="", encoding="utf-8") as handle:
            self.rows = list(csv.DictReader(handle))

    def video(self, place: int) -> Path:
        row = self.rows[place]
        return self.table.parent / "videos" / row["page_dir"] / f"{row['videoid']}.mp4"

    def write(self) -> None:
        with self.table.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("drawn"), 12, seed=3, size=64).parent


@pytest.fixture
def footage(drawn: Path, tmp_path: Path) -> Footage:
    shutil.copytree(drawn, tmp_path / "footage")
    return Footage(tmp_path / "footage")


@pytest.fixture(scope="module")
def first(drawn: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the twelve clips."""
    out = tmp_path_factory.mktemp("first") / "cache"
    made = build_latent_cache(CONFIG, drawn / "clips.csv", None, vae, out)
    assert made.metrics["changes"] == {"new": 12}
    return out


@pytest.fixture
def cache(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "cache"))


def changes_of(made: Artifact) -> dict[str, str]:
    rows = pq.read_table(made.folder / "changes.parquet").to_pylist()
    return {row["clip_id"]: row["change"] for row in rows}


def frames_encoded(caplog: pytest.LogCaptureFixture) -> int:
    """From the log's lines of shards."""
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Shard ")]
    return sum(int(line.split(": ")[1].split(" clips")[0]) for line in lines)


def the_same_as_a_fresh_one(made: Artifact, footage: Footage, vae: Path, config: CacheConfig, folder: Path) -> None:
    fresh = build_latent_cache(config, footage.table, None, vae, folder / "fresh")
    assert rows_of(made.folder) == rows_of(fresh.folder)
    assert [path.name for path in shard_paths(made.folder)] == [path.name for path in shard_paths(fresh.folder)]
    assert made.fingerprint == fresh.fingerprint
    assert verify(made.folder).ok


def test_nothing_changed_nothing_done(cache: Path, footage: Footage, vae: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("infra.runtime.ray_session", refuse)
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    build_latent_cache(CONFIG, footage.table, None, vae, cache)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_a_caption_costs_no_encoding(cache: Path, footage: Footage, vae: Path, caplog: pytest.LogCaptureFixture):
    old = {row["clip_id"]: row for row in rows_of(cache)}
    footage.rows[5]["name"] = "something else altogether"
    footage.write()
    with caplog.at_level(logging.INFO, logger="animateflow"):
        made = build_latent_cache(CONFIG, footage.table, None, vae, cache)
    clip_id = footage.rows[5]["videoid"]
    assert frames_encoded(caplog) == 0
    assert changes_of(made) == {clip_id: "caption"}
    assert made.metrics["changes"] == {"caption": 1}
    assert f"1: the caption changed, latents kept ({clip_id})." in caplog.text
    new = {row["clip_id"]: row for row in rows_of(cache)}
    assert new.pop(clip_id) == {**old.pop(clip_id), "caption": "something else altogether"}
    assert new == old
    assert verify(cache).ok


def test_a_video_costs_its_own_encoding_and_touches_one_shard(
    cache: Path, footage: Footage, vae: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    shards = {path.name: path.stat().st_ino for path in shard_paths(cache)}
    shutil.copy(footage.video(7), footage.video(2))
    os.utime(footage.video(2))
    with caplog.at_level(logging.INFO, logger="animateflow"):
        made = build_latent_cache(CONFIG, footage.table, None, vae, cache)
    clip_id = footage.rows[2]["videoid"]
    assert frames_encoded(caplog) == 1
    assert changes_of(made) == {clip_id: "video"}
    assert f"1: the video changed, encoded anew ({clip_id})." in caplog.text
    now = {path.name: path.stat().st_ino for path in shard_paths(cache)}
    assert len(set(shards.items()) - set(now.items())) == 1  # the others are the same files
    the_same_as_a_fresh_one(made, footage, vae, CONFIG, tmp_path)


def test_another_size_encodes_all_and_says_why(
    cache: Path, footage: Footage, vae: Path, caplog: pytest.LogCaptureFixture
):
    config = CONFIG.replace(size=40)
    with caplog.at_level(logging.INFO, logger="animateflow"):
        made = build_latent_cache(config, footage.table, None, vae, cache)
    assert "Every clip is encoded again: size 32 → 40." in caplog.text
    assert made.metrics["changes"] == {"encoding": 12}
    assert frames_encoded(caplog) == 12
    details = pq.read_table(cache / "changes.parquet")["detail"].to_pylist()
    assert set(details) == {"size 32 → 40"}
    assert all(row["latents_shape"] == [16, 4, 10, 10] for row in rows_of(cache))
    assert verify(cache).ok


def test_touched_files_are_hashed_and_kept(cache: Path, footage: Footage, vae: Path, caplog: pytest.LogCaptureFixture):
    for place in range(12):
        os.utime(footage.video(place))
    with caplog.at_level(logging.INFO, logger="animateflow"):
        made = build_latent_cache(CONFIG, footage.table, None, vae, cache)
    assert frames_encoded(caplog) == 0
    assert made.metrics["changes"] == {}


def test_new_rows_and_gone_rows(
    cache: Path, footage: Footage, vae: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    gone = footage.rows.pop(4)
    added = {**footage.rows[0], "videoid": "added", "name": "a new clip"}
    footage.rows.append(added)
    shutil.copy(footage.video(0), footage.video(11))
    footage.write()
    kept = build_latent_cache(CONFIG, footage.table, None, vae, cache)
    assert changes_of(kept) == {"added": "new"}
    assert kept.counts["clips"] == 13
    assert kept.metrics["kept_without_video"] == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="animateflow"):
        pruned = build_latent_cache(CONFIG, footage.table, None, vae, cache, prune=True)
    assert changes_of(pruned) == {gone["videoid"]: "dropped"}
    assert frames_encoded(caplog) == 0
    assert f"1: no longer in the source, dropped ({gone['videoid']})." in caplog.text
    the_same_as_a_fresh_one(pruned, footage, vae, CONFIG, tmp_path)


def test_latents_outlive_their_videos_and_cannot_change_their_size(cache: Path, footage: Footage, vae: Path):
    shutil.rmtree(footage.table.parent / "videos")
    (footage.table.parent / "videos").mkdir()
    made = build_latent_cache(CONFIG, footage.table, None, vae, cache)
    assert made.counts["clips"] == 12
    with pytest.raises(UserError, match=r"12 clips .* no longer have a video.* size 32 → 40"):
        build_latent_cache(CONFIG.replace(size=40), footage.table, None, vae, cache)
    assert verify(cache).ok


def test_a_video_that_turned_bad_is_rejected(cache: Path, footage: Footage, vae: Path):
    footage.video(1).write_bytes(b"no video any more")
    made = build_latent_cache(CONFIG, footage.table, None, vae, cache)
    assert made.counts["rejected.not_a_video"] == 1
    rows: list[dict[str, Any]] = pq.read_table(cache / "changes.parquet").to_pylist()
    assert rows == [{"clip_id": footage.rows[1]["videoid"], "change": "video", "detail": "rejected: not_a_video"}]
