"""What a latent cache will cost, from a measured sample of its videos: clips, hours, bytes, GPU-hours and wall time."""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from data_prep.sources.sources import read_source
from data_prep.video.child_process import Child, ChildDiedError, ChildRaisedError, ChildTimeoutError
from data_prep.video.decode import DecodedClip, prepare, request_for
from data_prep.video.read_video import VideoAnswer, VideoRequest, read_video
from infra import logs
from infra.errors import UserError

if TYPE_CHECKING:
    from data_prep.config import CacheConfig
    from data_prep.sources.sources import SourceRow

ROW_BYTES = 1500  # of a clip in a shard beside its latents: columns and its share of the file's metadata, rounded up
WARM_BATCHES, TIMED_BATCHES = 2, 4


@dataclass(frozen=True)
class Machine:
    """What the cache will be built on."""

    cpus: int
    gpus: int
    frames_per_second: float
    """Of the VAE, each GPU; without one, of all CPUs together."""
    read_bytes_per_second: float | None = None
    """What the storage of the videos delivers; None: never the limit."""


@dataclass(frozen=True)
class Estimate:
    """The whole cache, extrapolated from the sample."""

    rows: int
    sampled: int
    clips: float
    rejected_share: float
    reasons: dict[str, int]
    hours: float
    """Of cached clips, at their own frame rate."""
    frames: float
    cache_bytes: float
    source_bytes: float | None
    """None where the source does not say how large its files are."""
    decode_cpu_hours: float
    encode_hours: float
    """Of one GPU, or without one of all CPUs together."""
    machine: Machine

    @property
    def wall_hours(self) -> dict[str, float]:
        """By what limits: with GPUs decoding and encoding overlap; without, they share the CPUs."""
        machine = self.machine
        if machine.gpus:
            limits = {
                "decoding on the CPUs": self.decode_cpu_hours / machine.cpus,
                "encoding on the GPUs": self.encode_hours / machine.gpus,
            }
        else:
            limits = {"decoding and encoding on the CPUs": self.decode_cpu_hours / machine.cpus + self.encode_hours}
        if machine.read_bytes_per_second and self.source_bytes is not None:
            limits["reading the videos"] = self.source_bytes / machine.read_bytes_per_second / 3600
        return limits

    def __str__(self) -> str:
        limit, wall = max(self.wall_hours.items(), key=lambda pair: pair[1])
        gpus = self.machine.gpus
        rejected = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        unit = "GPU-hours" if gpus else "hours of this machine's CPUs"
        reading = "" if self.source_bytes is None else f", {_size(self.source_bytes)} of video to read"
        return "\n".join(
            [
                f"{self.rows:,} rows, {self.sampled} of them tried"
                + (f"; not usable: {rejected}" if rejected else "; all usable"),
                f"clips    {self.clips:,.0f} ({self.rejected_share:.1%} rejected), {self.frames:,.0f} frames, "
                f"{_hours(self.hours)} of footage",
                f"disk     {_size(self.cache_bytes)} of latents{reading}",
                f"decode   {_hours(self.decode_cpu_hours)} of one CPU",
                f"encode   {self.encode_hours:,.2f} {unit} at {self.machine.frames_per_second:,.0f} frames/s"
                + (" each" if gpus else ""),
                f"wall     {_hours(wall)} on {self.machine.cpus} CPUs and {gpus} GPUs; the limit is {limit}",
            ]
        )


def estimate(
    config: CacheConfig,
    source: str | Path,
    videos: str | Path | None,
    vae: Path,
    sample: int = 32,
    cpus: int | None = None,
    gpus: int | None = None,
    frames_per_second: float | None = None,
    read_bytes_per_second: float | None = None,
) -> Estimate:
    """Decodes `sample` random videos, times the VAE, and extrapolates.

    Machine figures that are not given are this machine's; `frames_per_second` is needed for a GPU that is not here.

    Raises:
        UserError: the source or the VAE is not there; GPUs are planned for and none is here to be timed.
    """
    import torch

    from data_prep.encode.encode import vae_folder

    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    if gpus and not here and frames_per_second is None:
        raise UserError(
            f"A plan for {gpus} GPUs needs the VAE's speed on one, and this machine has none to measure it on.",
            "",
            "Pass --frames-per-second; docs/performance.md has figures.",
        )
    rows = read_source(source, videos)
    weights = vae_folder(vae)
    tried = _Sample.of(config, rows, sample)
    rate: float = frames_per_second or _encode_rate(config, weights, "cuda" if gpus else "cpu")
    share = len(tried.frames) / max(1, tried.videos)
    usable = sum(row.file is not None for row in rows)
    clips = usable * share
    frames = clips * statistics.fmean(tried.frames) if tried.frames else 0.0
    fps = statistics.fmean(tried.fps) if tried.fps else 1.0
    return Estimate(
        rows=len(rows),
        sampled=tried.videos,
        clips=clips,
        rejected_share=1 - clips / len(rows),
        reasons=dict(tried.reasons),
        hours=frames / fps / 3600,
        frames=frames,
        cache_bytes=frames * _frame_bytes(config, weights) + clips * ROW_BYTES,
        source_bytes=usable * statistics.fmean(tried.sizes) if tried.sizes else None,
        decode_cpu_hours=usable * tried.cpu_seconds / max(1, tried.videos) / 3600,
        encode_hours=frames / rate / 3600,
        machine=Machine(cpus or len(os.sched_getaffinity(0)), gpus, rate, read_bytes_per_second),
    )


@dataclass
class _Sample:
    """Some videos, decoded."""

    videos: int
    frames: list[int]
    fps: list[float]
    sizes: list[int]
    reasons: Counter[str]
    cpu_seconds: float

    @classmethod
    def of(cls, config: CacheConfig, rows: list[SourceRow], count: int) -> _Sample:
        there = [row for row in rows if row.file is not None]
        chosen = random.Random(0).sample(there, min(count, len(there)))
        found = cls(len(chosen), [], [], [], Counter(), 0.0)
        reader: Child[VideoRequest, VideoAnswer] = Child(read_video, prepare)
        try:
            with (
                TemporaryDirectory(prefix="animateflow-") as scratch,
                logs.progress(len(chosen), "sample", "video") as bar,
            ):
                for row in chosen:
                    found._add(config, row, reader, Path(scratch))
                    bar.update(1)
        finally:
            reader.close()
        found.cpu_seconds = reader.worked
        return found

    def _add(
        self, config: CacheConfig, row: SourceRow, reader: Child[VideoRequest, VideoAnswer], scratch: Path
    ) -> None:
        assert row.file is not None
        if row.file.length is not None:
            self.sizes.append(row.file.length)
        reader.start(VideoRequest(row.file, request_for(config, row.clip_id, Path()), scratch))
        try:
            answer = reader.finish(config.decode_seconds_max)
        except (ChildDiedError, ChildTimeoutError, ChildRaisedError) as error:
            self.reasons[type(error).__name__] += 1
            return
        for clip in answer.clips:
            if isinstance(clip, DecodedClip):
                self.frames.append(len(clip.frames_FHWC))
                self.fps.append(clip.fps)
            else:
                self.reasons[clip.reason] += 1


def _frame_bytes(config: CacheConfig, vae: Path) -> float:
    """Of a latent frame in fp16, with its log-variance where that is kept."""
    told = json.loads((vae / "config.json").read_text(encoding="utf-8"))
    channels, side = int(told["latent_channels"]), config.size >> (len(told["block_out_channels"]) - 1)
    return 2.0 * channels * side * side * (2 if config.posterior == "moments" else 1)


def _encode_rate(config: CacheConfig, vae: Path, device: str) -> float:
    """Frames a second of the VAE on this machine."""
    import torch

    from data_prep.encode.encode import Encoder, batch_of, dtype_of, load_vae

    batch = batch_of(config.encode_batch, config.size, device)
    encoder = Encoder(load_vae(vae, device, dtype_of(config.precision, device)), batch)
    noise = np.random.default_rng(0).integers(0, 256, (batch, config.size, config.size, 3), np.uint8)
    seconds = 0.0
    for batches in (WARM_BATCHES, TIMED_BATCHES):
        began = time.monotonic()
        list(encoder.stream([(None, noise)] * batches))
        seconds = time.monotonic() - began
    torch.cuda.empty_cache()
    return TIMED_BATCHES * batch / seconds


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
