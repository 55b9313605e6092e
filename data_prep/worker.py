"""The actor that makes shards: decode in a child process, encode here, commit. Only a summary leaves it.

The child decodes the next video while the VAE encodes this one, and no decoded pixels pass through Ray's object store.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.child import Child, ChildDiedError, ChildLateError, ChildRaisedError
from data_prep.decode import DecodedClip, DecodeRequest, Refused, decode_clip, prepare
from data_prep.encode import Float16, encode_frames, load_vae
from data_prep.rows import Rejection
from data_prep.shards import write_shard
from infra.errors import AnimateflowError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class ClipTask:
    """A clip to be made."""

    caption: str
    source: str
    content_sha256: str
    request: DecodeRequest


@dataclass(frozen=True)
class ShardTask:
    """The clips of one shard, and the file that they become."""

    path: Path
    clips: list[ClipTask]


@dataclass(frozen=True)
class WorkerSettings:
    """How an actor works; none of this changes a row."""

    vae: Path
    device: str
    encode_batch: int
    decode_seconds_max: float


class ShardWorker:
    """One per actor: holds the VAE and the decoding child."""

    def __init__(self, settings: WorkerSettings) -> None:
        from infra.runtime import quiet_environment

        quiet_environment()
        self._settings = settings
        self._child: Child[DecodeRequest, DecodedClip | Refused] = Child(decode_clip, prepare)

    @cached_property
    def _vae(self) -> AutoencoderKL:
        return load_vae(self._settings.vae, self._settings.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes the shard `row["task"]`, a pickled `ShardTask`; returns its name and counts, or `error`, pickled.

        Ray would pass on an error as a text of its own.
        """
        try:
            return self._shard(pickle.loads(row["task"]))
        except AnimateflowError as error:
            return {"error": pickle.dumps(error)}

    def _shard(self, task: ShardTask) -> dict[str, Any]:
        started = time.monotonic()
        rows: list[dict[str, Any]] = []
        rejections: list[Rejection] = []
        for clip, decoded in self._decoded(task.clips):
            made = self._encoded(clip, decoded)
            if isinstance(made, Rejection):
                rejections.append(made)
            else:
                rows.append(made)
        write_shard(task.path, rows, rejections)
        return {
            "shard": task.path.name,
            "clips": len(rows),
            "rejected": len(rejections),
            "frames": sum(made["latents_shape"][0] for made in rows),
            "seconds": time.monotonic() - started,
            "reasons": json.dumps(sorted(rejection.reason for rejection in rejections)),
        }

    def close(self) -> None:
        self._child.close()

    def _decoded(self, clips: list[ClipTask]) -> Iterator[tuple[ClipTask, DecodedClip | Rejection]]:
        """Each clip decoded, one ahead of the consumer."""
        for place, clip in enumerate(clips):
            if place == 0:
                self._child.start(clip.request)
            decoded = self._finish(clip)
            if place + 1 < len(clips):
                self._child.start(clips[place + 1].request)
            yield clip, decoded

    def _finish(self, clip: ClipTask) -> DecodedClip | Rejection:
        limit = self._settings.decode_seconds_max
        try:
            answer = self._child.finish(limit)
        except ChildLateError as error:
            answer = Refused("decode_timeout", f"Decoding was not done within {limit:g} s and was ended ({error}).")
        except ChildDiedError as error:
            answer = Refused("decoder_crashed", f"The decoder crashed on this file (exit code {error.exit_code}).")
        except ChildRaisedError as error:
            answer = Refused("decode_failed", f"The decoder failed on this file: {error}.")
        if isinstance(answer, Refused):
            return Rejection(clip.request.clip_id, clip.source, "decode", answer.reason, answer.message)
        return answer

    def _encoded(self, clip: ClipTask, decoded: DecodedClip | Rejection) -> dict[str, Any] | Rejection:
        if isinstance(decoded, Rejection):
            return decoded
        latents = encode_frames(self._vae, decoded.frames_FHWC, self._settings.encode_batch)
        if not np.isfinite(latents).all():
            bad = int((~np.isfinite(latents)).sum())
            message = f"{bad} of {latents.size} latent values are not finite in fp16."
            return Rejection(clip.request.clip_id, clip.source, "encode", "latents_not_finite", message)
        return cache_row(clip, decoded, latents)


def cache_row(clip: ClipTask, decoded: DecodedClip, latents_FChw: Float16) -> dict[str, Any]:
    """A row of `rows.CACHE_SCHEMA`."""
    data = np.ascontiguousarray(latents_FChw).tobytes()
    return {
        "clip_id": clip.request.clip_id,
        "caption": clip.caption,
        "source": clip.source,
        "content_sha256": clip.content_sha256,
        "source_fps": decoded.source_fps,
        "source_frames": decoded.source_frames,
        "fps": decoded.fps,
        "source_indices": decoded.source_indices,
        "crop": decoded.crop,
        "shot_type": clip.request.shot_type,
        "motion": decoded.motion,
        "latents": data,
        "latents_shape": list(latents_FChw.shape),
        "latents_sha256": hashlib.sha256(data).hexdigest(),
    }
