"""The latent cache as a source of training batches. B batch, F frames, C channels, h w latents."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from components.batch import ClipBatch
from data_prep.rows import MANIFEST_COLUMNS, CachedClip
from data_prep.shards import shard_paths
from infra import artifacts
from infra.errors import UserError

Float16 = NDArray[np.float16]
Indices = NDArray[np.int64]

OPEN_SHARDS_MAX = 64
HELD_OUT_SHARE, HELD_OUT_MAX = 1 / 8, 64


class LatentCache:
    """A finished latent cache. Captions and shapes are in memory, latents are read from memory-mapped shards.

    An eighth of the clips, at most 64 and of two clips one, is held out: those with the smallest hash of their id, so
    that the choice does not depend on the order of the rows. The only clip of a cache of one is in both sets.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: `folder` is not a finished latent cache.
        """
        self.artifact = artifacts.load(folder, "latent-cache")
        self._shards = shard_paths(folder)
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._ids: list[str] = []
        self._captions: list[str] = []
        self._shapes: list[tuple[int, ...]] = []
        self._places: list[tuple[int, int]] = []
        for shard, path in enumerate(self._shards):
            table = pq.read_table(path, columns=["clip_id", "caption", "latents_shape"])
            self._ids += table["clip_id"].to_pylist()
            self._captions += table["caption"].to_pylist()
            self._shapes += [tuple(shape) for shape in table["latents_shape"].to_pylist()]
            self._places += [(shard, row) for row in range(len(table))]
        self._frames = np.asarray([shape[0] for shape in self._shapes], dtype=np.int64)
        by_hash = sorted(range(len(self)), key=lambda index: hashlib.sha256(self._ids[index].encode()).digest())
        held_out = max(1, min(HELD_OUT_MAX, int(len(self) * HELD_OUT_SHARE)))
        self._held_out = np.asarray(by_hash[:held_out], dtype=np.int64)
        self._drawn = np.sort(np.asarray(by_hash[held_out:] or by_hash, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def vae_sha256(self) -> str:
        """Hash of the VAE that encoded the clips, as `components.base_model.vae_sha256` gives it."""
        return str(self.artifact.metrics["vae_sha256"])

    @property
    def scaling_factor(self) -> float:
        """What a trainer multiplies the latents by."""
        return float(self.artifact.metrics["scaling_factor"])

    @property
    def channels(self) -> int:
        """C of every clip; 0 for an empty cache."""
        return self._shapes[0][1] if self._shapes else 0

    def row(self, index: int) -> CachedClip:
        """A clip with all its columns, by its place in the order of clip ids."""
        shard, place = self._places[index]
        values: dict[str, Any] = self._file(shard).read_row_group(place, columns=MANIFEST_COLUMNS).to_pylist()[0]
        del values["latents_shape"]
        return CachedClip(**values, latents_FChw=self._latents(index))

    def batches(self, batch_size: int, frames: int, seed: int, start_step: int = 0) -> Iterator[ClipBatch]:
        """Endless batches of random windows of `frames` frames in a row; one frame makes them random stills.

        The n-th batch is a function of (seed, start_step + n) alone. A batch holds no clip twice, unless it is larger
        than the cache.

        Raises:
            UserError: no clip has as many frames.
        """
        clips = self._long_enough(self._drawn, frames)
        return self._endless(clips, batch_size, frames, seed, start_step)

    def held_out(self, count: int, frames: int) -> ClipBatch:
        """The first frames of the first `count` held-out clips by hash, or of all where there are fewer.

        Raises:
            UserError: none of them has as many frames.
        """
        clips = self._long_enough(self._held_out, frames)[:count]
        return self._batch(clips, np.zeros(len(clips), dtype=np.int64), frames)

    def _endless(self, clips: Indices, batch_size: int, frames: int, seed: int, step: int) -> Iterator[ClipBatch]:
        while True:
            # a counter-based generator: step n costs as much as step 0, so that a resumed run seeks for free
            draw = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
            chosen = draw.choice(clips, batch_size, replace=batch_size > len(clips))
            first = draw.integers(0, self._frames[chosen] - frames + 1)
            yield self._batch(chosen, first, frames)
            step += 1

    def _batch(self, clips: Indices, first: Indices, frames: int) -> ClipBatch:
        windows = [
            self._latents(clip)[start : start + frames]
            for clip, start in zip(clips.tolist(), first.tolist(), strict=True)
        ]
        latents_BCFhw = np.ascontiguousarray(np.stack(windows).transpose(0, 2, 1, 3, 4), dtype=np.float32)
        return ClipBatch(
            torch.from_numpy(latents_BCFhw), [self._captions[i] for i in clips], [self._ids[i] for i in clips]
        )

    def _latents(self, index: int) -> Float16:
        shard, place = self._places[index]
        column = self._file(shard).read_row_group(place, columns=["latents"])["latents"].chunk(0)
        return np.frombuffer(column[0].as_buffer(), dtype=np.float16).reshape(self._shapes[index])

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if len(self._open) == OPEN_SHARDS_MAX:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = pq.ParquetFile(self._shards[shard], memory_map=True)
        return self._open[shard]

    def _long_enough(self, clips: Indices, frames: int) -> Indices:
        enough = clips[self._frames[clips] >= frames]
        if len(enough):
            return enough
        folder = self.artifact.folder
        if len(clips) == 0:
            raise UserError(
                f"The latent cache {folder} holds no clip.",
                "Every video was rejected.",
                f"Read the reasons in {folder / 'rejected.parquet'}, and build a cache of other videos.",
            )
        raise UserError(
            f"The longest of {len(clips)} clips in {folder} has {int(self._frames[clips].max())} frames; "
            f"{frames} are asked for.",
            "A clip is never repeated or slowed down to fill a window.",
            "Train with fewer frames, or build the cache with a larger frames_min.",
        )
