"""Real footage beside the project: every dirty row and every hostile file ends where it should."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep.builder.build import build_latent_cache
from data_prep.cache.shards import read_manifest
from data_prep.cache.verify import verify
from data_prep.config import CacheConfig
from infra.artifacts.artifacts import Artifact

CONFIG = CacheConfig(size=32, frames_max=16)


def ends(artifact: Artifact) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(artifact.folder / "rejected.parquet").to_pylist()
    assert all(row["message"] for row in rows)
    return {row["clip_id"]: (row["stage"], row["reason"]) for row in rows}


def test_dirty_table(realvideo: Path, vae: Path, tmp_path: Path):
    made = build_latent_cache(CONFIG, realvideo / "webvid_dirty.csv", realvideo / "videos", vae, tmp_path / "cache")
    assert ends(made) == {
        "1000001": ("check", "duplicate_id"),
        "1000090": ("check", "empty_caption"),
        "1000091": ("source", "missing_file"),
        "../../etc/passwd": ("source", "outside_folder"),
        "1000092": ("check", "bad_url"),
        "1000093": ("check", "bad_duration"),
        "1000094": ("source", "malformed_row"),
    }
    kept = sorted(read_manifest(made.folder)["clip_id"].to_pylist())
    assert kept == ["1000001", "1000002", *(f"10000{n:02d}" for n in range(7, 13))]
    assert verify(made.folder).ok


def test_jsonl_with_matroska(realvideo: Path, vae: Path, tmp_path: Path):
    made = build_latent_cache(CONFIG, realvideo / "clips.jsonl", None, vae, tmp_path / "cache")
    assert made.counts == {"clips": 12, "rejected": 0, "frames": 12 * 16}
    rates = dict(
        zip(
            (Path(source).stem for source in read_manifest(made.folder)["source"].to_pylist()),
            read_manifest(made.folder)["source_fps"].to_pylist(),
            strict=True,
        )
    )
    assert rates["1000008"] == pytest.approx(12.5, rel=1e-3)
    assert rates["1000012"] == pytest.approx(25, rel=1e-3)
    assert rates["1000011"] == pytest.approx(29.97, rel=1e-3)  # the larger of its two video streams


def test_hostile_files(realvideo: Path, vae: Path, tmp_path: Path):
    config = CONFIG.replace(frames_min=1, frames_max=64)  # so far that truncated_mdat.mp4 breaks off
    made = build_latent_cache(config, realvideo / "hostile", None, vae, tmp_path / "cache")
    assert ends(made) == {
        "bit_rot.mp4": ("decode", "damaged"),
        "empty.mp4": ("decode", "empty_file"),
        "header_only.avi": ("decode", "too_small"),
        "header_only.mp4": ("decode", "no_video_stream"),
        "one_pixel.gif": ("decode", "too_small"),
        "text_not_video.mp4": ("decode", "not_a_video"),
        "tiny_with_audio.mp4": ("decode", "no_video_stream"),
        "truncated_half.mp4": ("decode", "truncated"),
        "truncated_mdat.mp4": ("decode", "damaged"),
    }
    reasons = pq.read_table(made.folder / "rejected.parquet")["message"].to_pylist()
    assert not [reason for reason in reasons if "workspace" in reason or str(realvideo) in reason]  # decord's own lines
    kept = read_manifest(made.folder)
    frames = {row["clip_id"]: row["latents_shape"][0] for row in kept.to_pylist()}
    assert frames == {
        "av1.mkv": 40, "h264_10bit.mp4": 8, "header_only.webm": 1, "hevc.mp4": 8, "one_second_720p.mp4": 8,
        "rotated_180.mov": 1, "rotated_90.mov": 1, "unordered_pts.mov": 1,
    }  # fmt: skip
    crops = {row["clip_id"]: row["crop"] for row in kept.to_pylist()}
    assert crops["rotated_90.mov"] == [0, 124, 320, 320]  # upright: 320 wide, 568 high
    assert crops["rotated_180.mov"] == [124, 0, 320, 320]


def test_rotation_is_that_of_the_display_matrix(realvideo: Path):
    import av
    import numpy as np

    from tests.data_prep.video.test_decode import decoded

    for name, quarter_turns in (("rotated_90.mov", 3), ("rotated_180.mov", 2)):
        path = realvideo / "hostile" / name
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        assert frame.rotation == -90 * (4 - quarter_turns)
        upright = np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns)
        short = min(upright.shape[:2])
        top, left = (upright.shape[0] - short) // 2, (upright.shape[1] - short) // 2
        clip = decoded(path, size=short, frames_min=1)
        assert np.array_equal(clip.frames_FHWC[0], upright[top : top + short, left : left + short])
