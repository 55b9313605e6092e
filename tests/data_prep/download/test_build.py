"""A cache of videos that come from the web: fetched once, and what cannot be fetched is listed as such."""

import csv
from pathlib import Path

import pyarrow.parquet as pq

from data_prep.builder.build import build_latent_cache
from data_prep.cache.verify import verify
from data_prep.config import CacheConfig
from infra.artifacts.artifacts import Artifact
from tests.data_prep.download.conftest import QUICK
from tests.data_prep.download.lying_server import HTML, LyingServer, honest

CONFIG = CacheConfig(size=32, frames_max=16, workers=1, download=QUICK)


def rejected(made: Artifact) -> dict[str, str]:
    return {row["clip_id"]: row["reason"] for row in pq.read_table(made.folder / "rejected.parquet").to_pylist()}


def test_missing_videos_are_fetched_before_the_build(clips: Path, vae: Path, tmp_path: Path):
    with clips.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    with LyingServer() as server:
        for row in rows[:3]:
            data = (clips.parent / "videos" / row["page_dir"] / f"{row['videoid']}.mp4").read_bytes()
            server.answers[f"/{row['videoid']}.mp4"] = [honest(data)]
        server.answers[f"/{rows[3]['videoid']}.mp4"] = [honest(HTML, kind="text/html")]
        for row in rows:
            row["contentUrl"] = f"{server.url}/{row['videoid']}.mp4"
        table = tmp_path / "web.csv"
        with table.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        (tmp_path / "videos").mkdir()

        made = build_latent_cache(CONFIG, table, None, vae, tmp_path / "cache", download=True)
        assert made.counts["clips"] == 3
        ids = [row["videoid"] for row in rows]
        assert rejected(made) == {ids[3]: "download_not_video", ids[4]: "download_http_status"}
        assert verify(made.folder).ok
        server.asked.clear()

        data = (clips.parent / "videos" / rows[4]["page_dir"] / f"{ids[4]}.mp4").read_bytes()
        server.answers[f"/{ids[4]}.mp4"] = [honest(data)]
        made = build_latent_cache(CONFIG, table, None, vae, tmp_path / "cache", download=True)
        assert sorted(asked.path for asked in server.asked) == [f"/{ids[3]}.mp4", f"/{ids[4]}.mp4"]
        assert made.metrics["changes"] == {"new": 1}
        assert rejected(made) == {ids[3]: "download_not_video"}
