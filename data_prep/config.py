"""How videos become latents: what a person can set."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.download.config import DownloadConfig
from data_prep.filters.filters import Filters
from infra.config import Config, added, execution

Precision = Literal["auto", "fp32", "fp16", "bf16"]
ShotType = Literal[
    "none", "zoom-in", "zoom-out", "pan-left", "pan-right", "tilt-up", "tilt-down", "roll-clockwise",
    "roll-anticlockwise",
]  # fmt: skip


class ShotMove(Config):
    """How fast the crop of a shot type moves."""

    zoom: float = Field(28.4, gt=0, le=400)
    """Of a zoom, % a second: a two-second window grows 1.65 times at 28.4."""
    pan: float = Field(0.125, gt=0, le=4)
    """Of a pan or tilt, widths of the crop a second."""
    roll: float = Field(14.3, gt=0, le=90)
    """Degrees a second."""
    easing: Literal["constant", "eased"] = "constant"
    """`constant` speed, or `eased`: at rest at both ends, the same way in the same time."""


class CacheConfig(Config):
    """How videos become latents."""

    size: int = Field(256, ge=8, multiple_of=8)
    """Height and width of a clip, pixels."""
    fps: float = Field(8.0, gt=0, le=240)
    """Frames a second of a clip, taken from the video by its timestamps. 8 is what stride 4 gives at WebVid's rate."""
    stride: int | None = Field(None, ge=1)
    """Every n-th frame whatever the video's rate, in place of `fps`; 4 is the official training code's."""
    frames_min: int = Field(16, ge=1)
    """A video that gives fewer sampled frames is rejected; it is never slowed down."""
    frames_max: int = Field(64, ge=1)
    """Sampled frames kept of a longer video."""
    window: Literal["first", "random"] = "first"
    """Which frames are kept of a longer video: the first ones, or a window drawn from (seed, clip id)."""
    shot_type: ShotType = "none"
    """How the crop moves over a clip (paper sec. 4.3): reference clips for a MotionLoRA."""
    move: ShotMove = added(ShotMove())
    """How fast it moves, where there is a shot type."""
    rejected_share_max: float = Field(1.0, ge=0, le=1)
    """The work fails where a larger share of the source's rows is rejected."""
    seed: int = Field(0, ge=0)
    """For `window: random`."""
    posterior: Literal["mean", "moments"] = "mean"
    """What is kept of the VAE's posterior: its mean, or mean and log-variance, so that training can draw from it."""
    precision: Precision = "auto"
    """Of the VAE; `auto` is bf16 on a GPU and fp32 on a CPU. Latents are stored in fp16."""
    caption_embeddings: bool = False
    """Keep the text encoder's last hidden state of each caption."""
    filters: Filters = Filters()
    """What is measured beyond decoding, and rejected by it."""
    download: DownloadConfig = execution(DownloadConfig())
    """How missing videos are fetched, where that is asked for."""
    encode_batch: int = execution(0, ge=0)
    """Frames through the VAE at a time, across clips; 0 is what suits the device. Another number may change the last
    bit of latents."""
    decode_seconds_max: float = execution(120.0, gt=0)
    """A video whose decoding takes longer is rejected. Seconds of work; by the clock a tenfold."""
    shard_videos: int = execution(64, ge=1)
    """Videos in a shard at most: what a kill can cost."""
    workers: int = execution(0, ge=0)
    """Actors, each with a VAE; 0 is one a GPU, or without one as many as there are CPUs."""
    decoders: int = execution(0, ge=0)
    """Decoding processes of an actor; 0 is one on a CPU, and beside a GPU as many as it has CPUs."""
    device: str = execution("auto")
    """Of the VAE: auto, cpu or cuda."""
    ray_address: str | None = execution(None)
    """A running Ray cluster, such as `auto` or `ray://head:10001`; none: a Ray of its own on this machine."""

    def identity(self) -> dict[str, Any]:
        """A roll is another one than when it was named after the crop's turn."""
        fields = super().identity()
        if self.shot_type.startswith("roll"):
            fields["shot_type"] += " of the content"
        return fields

    @model_validator(mode="after")
    def _frames_in_order(self) -> Self:
        if self.frames_max < self.frames_min:
            raise ValueError(f"frames_max {self.frames_max} is below frames_min {self.frames_min}")
        return self
