"""Videos to a cache through the real parts: mp4 files, Ray Data, great_expectations, a VAE."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.builder import build
from data_prep.builder.build import build_latent_cache
from data_prep.cache.cache import LatentCache
from data_prep.cache.shards import shard_paths
from data_prep.cache.verify import verify
from data_prep.config import CacheConfig
from data_prep.encode.encode import load_vae, vae_folder
from infra import runtime
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact
from infra.errors import UserError, WorkError
from infra.hashing import sha256_file
from tests.data_prep.conftest import WHOLE


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for path in shard_paths(artifact.folder) for row in pq.read_table(path).to_pylist()]


def rejected(artifact: Artifact) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(artifact.folder / "rejected.parquet").to_pylist()
    return {row["clip_id"]: (row["stage"], row["reason"]) for row in rows}


def test_every_clip_is_there_with_its_figures(whole: Artifact, clips: Path):
    assert whole.counts == {"clips": 5, "rejected": 0, "frames": 100}
    assert whole.metrics["hours"] == pytest.approx(5 * 20 / 8 / 3600, abs=1e-6)
    assert whole.metrics["scaling_factor"] == 0.5
    assert {"bytes", "encode_seconds", "start_seconds", "frames_per_second", "vae_sha256"} <= set(whole.metrics)
    rows = rows_of(whole)
    ids = [f"{7_000_000 + i:09d}" for i in range(5)]
    assert [row["clip_id"] for row in rows] == sorted(ids, key=lambda one: hashlib.sha256(one.encode()).hexdigest())
    assert {(row["decoder"], row["source_width"], row["source_height"], row["duration"]) for row in rows} == {
        ("decord", 64, 64, 2.5)
    }
    assert all(row["source_indices"] == list(range(0, 40, 2)) for row in rows)
    assert all(row["latents_shape"] == [20, 4, 8, 8] for row in rows)
    assert all((clips.parent / "videos" / row["source"]).is_file() for row in rows)
    assert verify(whole.folder).ok
    assert (whole.folder / "data_docs" / "index.html").is_file()
    assert not list(whole.folder.glob(".*"))
    assert len(shard_paths(whole.folder)) > 2


def test_latents_are_unscaled_posterior_means(whole: Artifact, clips: Path, vae: Path):
    import av
    import torch

    from data_prep.video.crop import crop_frames
    from data_prep.video.shot_types import crop_path

    row = rows_of(whole)[0]
    with av.open(str(clips.parent / "videos" / row["source"])) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    pixels = crop_frames(frames[row["source_indices"]], crop_path("none", 64, 64, 20, 8.0), 32)
    with torch.inference_mode():
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean = load_vae(vae_folder(vae), "cpu").encode(scaled).latent_dist.mean
    latents = np.frombuffer(row["latents"], dtype=np.float16).reshape(row["latents_shape"])
    assert np.abs(latents - mean.numpy()).max() < 2e-3 * np.abs(mean.numpy()).max()


def test_it_trains(whole: Artifact):
    cache = LatentCache(whole.folder)
    batch = next(cache.batches(2, 16, seed=0))
    assert tuple(batch.latents_BCFhw.shape) == (2, 4, 16, 8, 8)
    assert set(batch.clip_ids).isdisjoint(cache.held_out(1, 16).clip_ids)


def test_interrupted_it_goes_on_and_ends_the_same(
    whole: Artifact, clips: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    out = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(build, "_shard_line", stop)
        with pytest.raises(KeyboardInterrupt):
            build_latent_cache(WHOLE, clips, clips.parent / "videos", vae, out)
    done = {path.name: path.stat().st_mtime_ns for path in shard_paths(tmp_path / ".cache.partial")}
    shards = len(shard_paths(whole.folder))
    assert 1 <= len(done) <= shards
    shard_paths(tmp_path / ".cache.partial")[-1].unlink() if len(done) == shards else None
    again = build_latent_cache(WHOLE, clips, clips.parent / "videos", vae, out)
    kept = {path.name: path.stat().st_mtime_ns for path in shard_paths(out)}
    assert len(kept) == shards
    assert any(done.get(name) == time for name, time in kept.items())
    assert rows_of(again) == rows_of(whole)
    assert again.fingerprint == whole.fingerprint


def test_a_finished_cache_is_returned_without_ray(whole: Artifact, clips: Path, vae: Path, no_ray: None):
    again = build_latent_cache(WHOLE.replace(workers=2), clips, clips.parent / "videos", vae, whole.folder)
    assert again.record == whole.record


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("infra.runtime.ray_session", refuse)


def test_a_path_is_no_identity(whole: Artifact, clips: Path, vae: Path, tmp_path: Path):
    shutil.copytree(clips.parent, tmp_path / "moved")
    moved = tmp_path / "moved" / clips.name
    again = build_latent_cache(WHOLE, moved, moved.parent / "videos", vae, whole.folder)
    assert again.fingerprint == whole.fingerprint


def test_an_older_format_is_refused(clips: Path, vae: Path, tmp_path: Path):
    with artifacts.draft(tmp_path / "old", "latent-cache", WHOLE, {}):
        pass
    with pytest.raises(UserError, match="older format"):
        build_latent_cache(WHOLE, clips, clips.parent / "videos", vae, tmp_path / "old")


def test_bad_rows_are_listed_logged_and_counted(
    ray_local: None, clips: Path, vae: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "footage"
    folder.mkdir()
    for place, path in enumerate(sorted(clips.parent.rglob("*.mp4"))[:3]):
        shutil.copy(path, folder / f"clip_{place}.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    (folder / "clip_2.txt").write_text("  ")
    with caplog.at_level(logging.INFO, logger="animateflow"):
        made = build_latent_cache(WHOLE, folder, None, vae, tmp_path / "cache")
    assert rejected(made) == {
        "clip_2.mp4": ("check", "empty_caption"),
        "empty.mp4": ("decode", "empty_file"),
        "text.mp4": ("decode", "not_a_video"),
    }
    assert made.counts == {
        "clips": 2, "rejected": 3, "rejected.empty_caption": 1, "rejected.empty_file": 1, "rejected.not_a_video": 1,
        "frames": 40,
    }  # fmt: skip
    assert sorted(row["caption"] for row in rows_of(made)) == ["clip 0", "clip 1"]
    lines = [record.getMessage() for record in caplog.records if record.name == "animateflow.data_prep"]
    shards = [line for line in lines if line.startswith("Shard ")]
    assert sum("1 empty_file" in line for line in shards) == sum("1 not_a_video" in line for line in shards) == 1


def test_too_many_rejections_fail_the_work_and_none_left_is_a_warning(
    ray_local: None, vae: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "footage").mkdir()
    (tmp_path / "footage" / "empty.mp4").write_bytes(b"")
    with pytest.raises(WorkError, match="1 of 1 rows are rejected"):
        build_latent_cache(WHOLE.replace(rejected_share_max=0.5), tmp_path / "footage", None, vae, tmp_path / "strict")
    with caplog.at_level(logging.WARNING, logger="animateflow"):
        made = build_latent_cache(WHOLE, tmp_path / "footage", None, vae, tmp_path / "cache")
    assert made.counts["clips"] == 0
    assert "The cache is empty" in caplog.text
    assert verify(made.folder).ok
    with pytest.raises(UserError, match="holds no clip"):
        LatentCache(made.folder).held_out(1, 16)


def test_two_workers_on_ray_make_the_bytes_of_one_that_needs_none(
    ray_local: None, whole: Artifact, clips: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    two = build_latent_cache(WHOLE.replace(workers=2), clips, clips.parent / "videos", vae, tmp_path / "two")
    monkeypatch.setattr(runtime, "ray_session", None)
    one = build_latent_cache(WHOLE, clips, clips.parent / "videos", vae, tmp_path / "one")
    shards = [[sha256_file(path) for path in shard_paths(cache.folder)] for cache in (whole, one, two)]
    assert shards[0] == shards[1] == shards[2]
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_worker_is_one_message(ray_local: None, clips: Path, vae: Path, tmp_path: Path, workers: int):
    broken = tmp_path / "vae"
    shutil.copytree(vae / "vae", broken)
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"rotten")
    with pytest.raises(UserError, match="cannot be read"):
        build_latent_cache(WHOLE.replace(workers=workers), clips, clips.parent / "videos", broken, tmp_path / "cache")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_nobody_foresaw_is_named(ray_local: None, clips: Path, tmp_path: Path, workers: int):
    from diffusers import AutoencoderKL

    AutoencoderKL(in_channels=1, block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "grey")
    with pytest.raises(WorkError, match=r"Encoding stopped: RuntimeError: .*1 channels") as caught:
        build_latent_cache(
            WHOLE.replace(workers=workers), clips, clips.parent / "videos", tmp_path / "grey", tmp_path / "cache"
        )
    assert "Ray" not in str(caught.value)


def test_no_vae(clips: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    for path in (tmp_path, tmp_path / "none", clips):
        with pytest.raises(UserError, match="AutoencoderKL|is not a folder"):
            build_latent_cache(WHOLE, clips, clips.parent / "videos", path, tmp_path / "cache")


def test_the_config_refuses_what_cannot_be():
    with pytest.raises(UserError, match="frames_max 8 is below frames_min 16"):
        CacheConfig().replace(frames_max=8)
    assert CacheConfig(workers=2, encode_batch=1, device="cpu").fingerprint() == CacheConfig().fingerprint()
