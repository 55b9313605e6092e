"""The Ray actor that makes shards: it decodes in child processes, encodes, and commits. Only a summary leaves it.

The children decode the next videos while the VAE encodes these, and no decoded pixels pass through Ray's object store.
Clips that an older shard holds are reused.
"""

from __future__ import annotations

import json
import pickle
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.cache.rows import Rejection
from data_prep.cache.shards import ShardState, VideoState, write_shard
from data_prep.encode.clip_rows import add_embeddings, cache_row, clip_name
from data_prep.encode.encode import CaptionEncoder, Encoder, Latents, UInt8, batch_of, dtype_of, load_vae, vae_figures
from data_prep.encode.reuse import OldShards
from data_prep.encode.tasks import ShardTask, VideoTask
from data_prep.filters.filters import judge_measures
from data_prep.filters.measures import CaptionMatch
from data_prep.video.child_process import Child, ChildDiedError, ChildRaisedError, ChildTimeoutError
from data_prep.video.decode import DecodedClip, Refused, prepare, request_for
from data_prep.video.read_video import VideoAnswer, VideoRequest, read_video
from infra.errors import AnimateflowError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from data_prep.config import CacheConfig


@dataclass(frozen=True)
class WorkerSettings:
    """How an actor works."""

    config: CacheConfig
    vae: Path
    text: Path | None
    """The pipeline folder whose text encoder embeds captions; None where that is off."""
    device: str
    decoders: int
    threads: int
    """Of the VAE on a CPU."""


@dataclass
class _ShardInProgress:
    """A shard that is being made."""

    task: ShardTask
    filters: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejections: dict[str, list[Rejection]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    encoded: int = 0
    frames: int = 0

    def reject(self, video: VideoTask, refused: Refused) -> None:
        rejection = Rejection(
            clip_name(video.video_id, refused.shot),
            video.source,
            refused.stage,
            refused.reason,
            refused.message,
            refused.value,
        )
        self.rejections.setdefault(video.video_id, []).append(rejection)

    @property
    def state(self) -> ShardState:
        videos = {
            video.video_id: VideoState(
                video.caption,
                video.source,
                video.stamp,
                self.hashes.get(video.video_id, ""),
                self.rejections.get(video.video_id, []),
            )
            for video in self.task.videos
        }
        return ShardState(self.task.encoding, self.filters, videos)


class ShardWorker:
    """One per actor: holds the VAE and the decoding children."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch

        from infra.runtime import keep_freed_memory, quiet_environment

        quiet_environment()
        keep_freed_memory()
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._children: list[Child[VideoRequest, VideoAnswer]] = [
            Child(read_video, prepare) for _ in range(settings.decoders)
        ]

    @cached_property
    def _vae(self) -> AutoencoderKL:
        settings = self._settings
        return load_vae(settings.vae, settings.device, dtype_of(settings.config.precision, settings.device))

    @cached_property
    def _vae_figures(self) -> dict[str, Any]:
        return vae_figures(self._vae if self._vae.dtype.itemsize == 4 else load_vae(self._settings.vae, "cpu"))

    @cached_property
    def _encoder(self) -> Encoder:
        config = self._settings.config
        batch = batch_of(config.encode_batch, config.size, self._settings.device)
        encoder = Encoder(self._vae, batch, config.posterior == "moments")
        encoder.warm(config.size)
        return encoder

    @cached_property
    def _captions(self) -> CaptionEncoder | None:
        settings = self._settings
        return CaptionEncoder(settings.text, settings.device) if settings.text is not None else None

    @cached_property
    def _caption_match(self) -> CaptionMatch | None:
        filters = self._settings.config.filters
        if filters.caption_match_min is None or filters.clip is None:
            return None
        return CaptionMatch(filters.clip, self._settings.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes the shard `row["task"]`, a pickled `ShardTask`; returns its name and counts, or `error`, pickled.

        Ray would pass on an error as a text of its own.
        """
        try:
            return self._shard(pickle.loads(row["task"]))
        except AnimateflowError as error:
            return {"error": pickle.dumps(error)}

    def close(self) -> None:
        for child in self._children:
            child.close()

    def _shard(self, task: ShardTask) -> dict[str, Any]:
        self._warm()
        began, worked = time.time(), sum(child.worked for child in self._children)
        making = _ShardInProgress(task, self._settings.config.filters.model_dump(mode="json"))
        missing = self._reuse_clips(making)
        with tempfile.TemporaryDirectory(prefix="animateflow-") as scratch:
            self._make(making, missing, Path(scratch))
        add_embeddings(making.rows, self._captions)
        unread = any(row.reason == "unreadable" for rows in making.rejections.values() for row in rows)
        write_shard(task.path_incomplete if unread else task.path, making.rows, making.state)
        return {
            "shard": task.path.name,
            "videos": len(task.videos),
            "clips": len(making.rows),
            "encoded": making.encoded,
            "frames": making.frames,
            "began": began,
            "ended": time.time(),
            "decode_cpu_seconds": sum(child.worked for child in self._children) - worked,
            "vae": self._vae_figures,
            "reasons": json.dumps(sorted(row.reason for rows in making.rejections.values() for row in rows)),
        }

    def _warm(self) -> None:
        """Loads the models and starts the children, before the first video."""
        for child in self._children:
            child.warm()
        _ = self._encoder, self._vae_figures, self._captions, self._caption_match
        for child in self._children:
            child.await_start()

    def _reuse_clips(self, making: _ShardInProgress) -> list[VideoTask]:
        """Reuses what older shards hold; returns the videos that have to be encoded."""
        known = OldShards(making.task.old, making.task.encoding, self._settings.config.filters)
        missing = []
        for video in making.task.videos:
            found = known.of(video)
            if found is None:
                missing.append(video)
                continue
            making.hashes[video.video_id] = found.content_sha256
            for row in found.rows:
                self._apply_thresholds(making, video, row)
            for rejection in found.rejections:
                making.rejections.setdefault(video.video_id, []).append(replace(rejection, source=video.source))
        return missing

    def _apply_thresholds(self, making: _ShardInProgress, video: VideoTask, row: dict[str, Any]) -> None:
        """Applies the filters' thresholds to old measurements: they may have changed since the row was written."""
        verdict = judge_measures(self._settings.config.filters, row)
        if verdict is None:
            making.rows.append({**row, "caption": video.caption, "source": video.source})
        else:
            making.rejections.setdefault(video.video_id, []).append(
                Rejection(row["clip_id"], video.source, "filter", verdict.reason, verdict.message, verdict.value)
            )

    def _make(self, making: _ShardInProgress, videos: list[VideoTask], scratch: Path) -> None:
        for (video, clip), latents in self._encoder.stream(self._decoded(making, videos, scratch)):
            bad = int((~np.isfinite(latents.mean)).sum())
            if bad:
                message = f"{bad} of {latents.mean.size} latent values are not finite in fp16; set precision to fp32."
                making.reject(video, Refused("latents_not_finite", message, "encode", shot=clip.shot))
                continue
            making.rows.append(self._row(making, video, clip, latents))
            making.encoded += 1
            making.frames += len(latents.mean)

    def _row(self, making: _ShardInProgress, video: VideoTask, clip: DecodedClip, latents: Latents) -> dict[str, Any]:
        name = clip_name(video.video_id, clip.shot)
        return cache_row(name, video, making.hashes[video.video_id], clip, latents, self._settings.config.shot_type)

    def _decoded(
        self, making: _ShardInProgress, videos: list[VideoTask], scratch: Path
    ) -> Iterator[tuple[tuple[VideoTask, DecodedClip], UInt8]]:
        """The clips of the videos in their order, each child one video ahead."""
        children = self._children
        for video, child in zip(videos, children, strict=False):
            child.start(self._request(video, scratch))
        for place, video in enumerate(videos):
            child = children[place % len(children)]
            answer = self._finish(child)
            if place + len(children) < len(videos):
                child.start(self._request(videos[place + len(children)], scratch))
            making.hashes[video.video_id] = answer.content_sha256
            for result in answer.clips:
                if isinstance(result, Refused):
                    making.reject(video, result)
                elif self._matches(making, video, result):
                    yield (video, result), result.frames_FHWC

    def _request(self, video: VideoTask, scratch: Path) -> VideoRequest:
        assert video.file is not None, "a video that no longer exists was reused or refused before"
        return VideoRequest(video.file, request_for(self._settings.config, video.video_id, Path()), scratch)

    def _finish(self, child: Child[VideoRequest, VideoAnswer]) -> VideoAnswer:
        limit = self._settings.config.decode_seconds_max
        try:
            return child.finish(limit)
        except ChildTimeoutError as error:
            refused = Refused("decode_timeout", f"Decoding was not done within {limit:g} s and was ended ({error}).")
        except ChildDiedError as error:
            refused = Refused("decoder_crashed", f"The decoder crashed on this file (exit code {error.exit_code}).")
        except ChildRaisedError as error:
            refused = Refused("decode_failed", f"The decoder failed on this file: {error}.")
        return VideoAnswer("", [refused])

    def _matches(self, making: _ShardInProgress, video: VideoTask, clip: DecodedClip) -> bool:
        """Measures how well the caption fits, where that is asked for; False where it does not."""
        if self._caption_match is None:
            return True
        clip.measures["caption_match"] = self._caption_match(clip.frames_FHWC, video.caption)
        verdict = judge_measures(self._settings.config.filters, clip.measures)
        if verdict is not None:
            making.reject(video, Refused(verdict.reason, verdict.message, "filter", verdict.value, clip.shot))
        return verdict is None
