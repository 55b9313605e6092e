"""A plan against the cache that is then built, and its arithmetic for machines that are not here."""

from pathlib import Path

import pytest

from data_prep.builder.build import build_latent_cache
from data_prep.builder.estimate import Estimate, Machine, estimate
from data_prep.cache.shards import shard_paths
from data_prep.config import CacheConfig
from infra.errors import UserError

CONFIG = CacheConfig(size=32, frames_max=20, shard_videos=2)


def test_the_plan_of_a_whole_sample_is_what_is_built(clips: Path, vae: Path, tmp_path: Path):
    for video in sorted(clips.parent.rglob("*.mp4")):
        (tmp_path / video.name).write_bytes(video.read_bytes())
    (tmp_path / "empty.mp4").write_bytes(b"")
    planned = estimate(CONFIG, tmp_path, None, vae, gpus=0)
    made = build_latent_cache(CONFIG, tmp_path, None, vae, tmp_path.with_name("cache"))
    assert (planned.rows, planned.sampled, planned.reasons) == (6, 6, {"empty_file": 1})
    assert (planned.clips, planned.frames) == (made.counts["clips"], made.counts["frames"])
    assert planned.hours == pytest.approx(made.metrics["hours"], abs=1e-6)
    assert planned.source_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.mp4"))
    written = [path.stat().st_size for path in shard_paths(made.folder)]
    footer = 12_000  # of a shard; five clips have three
    assert planned.cache_bytes - footer < sum(written) < planned.cache_bytes + footer * len(written)
    assert 0 < planned.decode_cpu_hours < 1
    assert planned.encode_hours == pytest.approx(planned.frames / planned.machine.frames_per_second / 3600)
    assert "6 rows, 6 of them tried; not usable: 1 empty_file" in str(planned)


def hours(machine: Machine, decode: float, encode: float, source_bytes: float | None = 36e12) -> dict[str, float]:
    whole = Estimate(100, 10, 90.0, 0.1, {}, 1.0, 900.0, 1e6, source_bytes, decode, encode, machine)
    assert max(whole.wall_hours, key=whole.wall_hours.__getitem__) in str(whole)
    return whole.wall_hours


def test_stages_run_beside_each_other_on_gpus_and_share_the_cpus_without():
    assert hours(Machine(16, 4, 1000.0), decode=160.0, encode=20.0) == {
        "decoding on the CPUs": 10.0,
        "encoding on the GPUs": 5.0,
    }
    assert hours(Machine(16, 0, 1000.0), decode=160.0, encode=20.0) == {"decoding and encoding on the CPUs": 30.0}
    with_storage = hours(Machine(16, 4, 1000.0, 1e9), decode=160.0, encode=20.0)
    assert with_storage["reading the videos"] == 10.0
    assert "reading the videos" not in hours(Machine(16, 4, 1000.0, 1e9), 160.0, 20.0, source_bytes=None)


def test_a_gpu_that_is_not_here_needs_a_figure(clips: Path, vae: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="this machine has none"):
        estimate(CONFIG, clips, None, vae, gpus=8)
    planned = estimate(CONFIG, clips, None, vae, sample=2, gpus=8, cpus=64, frames_per_second=500.0)
    assert (planned.sampled, planned.rows, planned.clips) == (2, 5, 5.0)
    assert "GPU-hours at 500 frames/s each" in str(planned)
    assert "on 64 CPUs and 8 GPUs" in str(planned)
