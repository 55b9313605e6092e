"""The latent cache as a source of training batches.

B batch, F frames, C channels, h w latents, L D tokens and width of a caption's embedding.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from components.train.batch import ClipBatch
from data_prep.cache.clip_index import read_index
from data_prep.cache.order import Order, Places
from data_prep.cache.row_reader import RowReader, version_of
from data_prep.cache.rows import CachedClip
from infra.artifacts import artifacts
from infra.errors import UserError, WorkError
from infra.seeds import generator_for, key_for

Float16 = NDArray[np.float16]
Posterior = Literal["mean", "sample"]


class LatentCache:
    """A finished latent cache, opened by its index: a few bytes a clip are in memory, the rest stays in the shards.

    Some clips are held out, the same ones for every training (`data_prep.cache.clip_index.ClipIndex`). The clips of
    an only video are both held out and drawn.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UserError: `folder` is not a finished latent cache, or its index is not that of its shards.
        """
        self.artifact = artifacts.load(folder, "latent-cache")
        version = version_of(folder)
        self._index = read_index(folder, self.artifact.counts["clips"])
        self._reader = RowReader(folder, version, self._index.shards, self._index.rows)

    def __reduce__(self) -> tuple[Callable[[Path, str], LatentCache], tuple[Path, str]]:
        """Another process opens it anew."""
        return _reopened, (self.artifact.folder.absolute(), self.artifact.fingerprint)

    def __len__(self) -> int:
        return len(self._index.frames)

    @property
    def vae_sha256(self) -> str:
        """Hash of the VAE that encoded the clips, as `components.base.model.vae_sha256` gives it."""
        return str(self.artifact.metrics["vae_sha256"])

    @property
    def scaling_factor(self) -> float:
        """What a trainer multiplies the latents by."""
        return float(self.artifact.metrics["scaling_factor"])

    @property
    def channels(self) -> int:
        """C of every clip; 0 for an empty cache."""
        return self._shape_Chw[0] if len(self) else 0

    @property
    def latent_size(self) -> tuple[int, int]:
        """h, w of every clip."""
        _, height, width = self._shape_Chw
        return height, width

    def row(self, index: int) -> CachedClip:
        """A clip with all its columns, by its place in the order of the cache.

        Raises:
            WorkError: its shard is damaged, or the cache was built again since it was opened.
        """
        names = [field.name for field in fields(CachedClip) if field.name != "latents_FChw"]
        row = self._read(index, [*names, "latents", "latents_shape"])
        return CachedClip(**row.select(names).to_pylist()[0], latents_FChw=self._clip(row, index, "latents"))

    def batches(
        self,
        batch_size: int,
        frames: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        posterior: Posterior = "mean",
    ) -> Iterator[ClipBatch]:
        """Endless batches of random windows of `frames` frames in a row; one frame makes them random stills.

        `batch_size` is that of all ranks together; rank r gets the r-th of `world_size` equal parts of each batch. An
        epoch is a shuffle of the clips that are long enough and not held out (`data_prep.cache.order.Order`). The n-th
        batch is a function of (seed, start_step + n), and any step is read as fast as the first. With
        `posterior="sample"` latents are drawn from the VAE's posteriors, as a function of (seed, sample number).

        A thread reads `prefetch` batches ahead and ends with the iterator; 0 reads none ahead.

        Raises:
            UserError: at once: no clip has as many frames; ranks cannot share the batch; the posteriors' variances are
                not in the cache.
            WorkError: from the iterator: a shard is damaged, or the cache was built again meanwhile.
        """
        _check_numbers(batch_size, frames, start_step, rank, world_size, prefetch)
        held_out = self._index.held_out
        clips = self._long_enough(held_out if held_out < len(self) else 0, len(self), frames)
        if posterior == "sample":
            self._check_variances()
        order = Order(len(clips), batch_size, seed)
        noise_key = key_for("posterior", seed)

        def batch(step: int) -> ClipBatch:
            samples = order.samples(step, rank, world_size)
            chosen = clips[order.places(samples)]
            starts = order.starts(samples, self._index.frames[chosen] - frames + 1)
            noise = [generator_for(noise_key, sample) for sample in samples] if posterior == "sample" else None
            return self._batch(chosen, starts, frames, noise)

        return _ahead(batch, start_step, prefetch)

    def held_out(self, count: int, frames: int) -> ClipBatch:
        """The first frames of the first `count` held-out clips, or of all where there are fewer; posterior means.

        Raises:
            UserError: none of them has as many frames.
        """
        clips = self._long_enough(0, self._index.held_out, frames)[:count]
        return self._batch(clips, np.zeros(len(clips), dtype=np.int64), frames)

    def check_holds_clips(self) -> None:
        """
        Raises:
            UserError: every video was rejected.
        """
        if not len(self):
            folder = self.artifact.folder
            raise UserError(
                f"The latent cache {folder} holds no clip.",
                "Every video was rejected.",
                f"Read the reasons in {folder / 'rejected.parquet'}, and build a cache from other videos.",
            )

    def stills(self, count: int) -> tuple[torch.Tensor, list[str]]:
        """Latents (N, C, h, w), not scaled, of the middle frames of `count` clips spread evenly over the cache, and
        their captions."""
        clips = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        rows = [self.row(int(clip)) for clip in clips]
        latents = np.stack([row.latents_FChw[len(row.latents_FChw) // 2] for row in rows]).astype(np.float32)
        return torch.from_numpy(latents), [row.caption for row in rows]

    def _batch(
        self, clips: NDArray[np.int32], starts: Places, frames: int, noise: list[np.random.Generator] | None = None
    ) -> ClipBatch:
        columns = ["clip_id", "caption", "latents", "latents_shape"]
        columns += ["logvar"] if noise else []
        columns += ["caption_embedding", "caption_embedding_shape"] if self._has_embeddings else []
        C, h, w = self._shape_Chw
        latents_BCFhw = np.empty((len(clips), C, frames, h, w), np.float32)
        captions, ids, embeddings = [], [], []
        for place, (clip, start) in enumerate(zip(clips.tolist(), starts.tolist(), strict=True)):
            row = self._read(clip, columns)  # let go before the next one is read: it holds its whole row group
            window = slice(start, start + frames)
            latents_BCFhw[place] = self._clip(row, clip, "latents")[window].transpose(1, 0, 2, 3)
            if noise:
                logvar_FChw = self._clip(row, clip, "logvar")[window].astype(np.float32)
                eps_FChw = noise[place].standard_normal(logvar_FChw.shape, np.float32)
                latents_BCFhw[place] += (np.exp(logvar_FChw / 2) * eps_FChw).transpose(1, 0, 2, 3)
            if self._has_embeddings:
                embeddings.append(
                    self._array(row, clip, "caption_embedding", row["caption_embedding_shape"][0].as_py())
                )
            captions.append(row["caption"][0].as_py())
            ids.append(row["clip_id"][0].as_py())
        states_BLD = torch.from_numpy(np.stack(embeddings).astype(np.float32)) if embeddings else None
        return ClipBatch(torch.from_numpy(latents_BCFhw), captions, ids, states_BLD)

    @cached_property
    def _shape_Chw(self) -> tuple[int, int, int]:
        _, C, h, w = self._read(0, ["latents_shape"])["latents_shape"][0].as_py()
        return C, h, w

    @cached_property
    def _has_embeddings(self) -> bool:
        return bool(self._read(0, ["caption_embedding_shape"])["caption_embedding_shape"].null_count == 0)

    def _check_variances(self) -> None:
        if self._read(0, ["logvar"])["logvar"].null_count:
            raise UserError(
                f"The latent cache {self.artifact.folder} holds the means of posteriors only.",
                "A draw from a posterior needs its variance too.",
                "Train on the means, or build the cache with `posterior: moments`.",
            )

    def _read(self, clip: int, columns: list[str]) -> pa.Table:
        if not 0 <= clip < len(self):
            raise IndexError(f"clip {clip} of {len(self)}")
        return self._reader.read(*self._index.place(clip), columns)

    def _clip(self, row: pa.Table, clip: int, column: str) -> Float16:
        """Latents or their variances (F, C, h, w), where they have the shape that the index and the first clip say."""
        expected = (int(self._index.frames[clip]), *self._shape_Chw)
        shape = row["latents_shape"][0].as_py()
        if tuple(shape or ()) != expected:
            raise self._damaged(clip, f"latents of shape {shape}; {list(expected)} are expected")
        return self._array(row, clip, column, shape)

    def _array(self, row: pa.Table, clip: int, column: str, shape: Sequence[int] | None) -> Float16:
        data = row[column].chunk(0)[0].as_buffer()
        if data is None or shape is None or data.size != 2 * math.prod(shape):
            raise self._damaged(clip, f"{data.size if data else 0} bytes of {column} of the shape {shape}")
        return np.frombuffer(data, dtype=np.float16).reshape(shape)

    def _damaged(self, clip: int, what: str) -> WorkError:
        shard, row = self._index.place(clip)
        return self._reader.damaged(shard, f"holds in row {row} {what}")

    def _long_enough(self, first: int, end: int, frames: int) -> NDArray[np.int32]:
        """Those of the clips `first` … `end` − 1 that have `frames` frames."""
        lengths, folder = self._index.frames[first:end], self.artifact.folder
        enough = np.arange(first, end, dtype=np.int32)[lengths >= frames]
        if len(enough):
            return enough
        self.check_holds_clips()
        raise UserError(
            f"The longest of {len(lengths)} clips in {folder} has {lengths.max()} frames; {frames} are asked for.",
            "A clip is never repeated or slowed down to fill a window.",
            "Train with fewer frames, or build the cache with a larger frames_min.",
        )


def _reopened(folder: Path, fingerprint: str) -> LatentCache:
    cache = LatentCache(folder)
    if cache.artifact.fingerprint != fingerprint:
        raise WorkError(
            f"The latent cache {folder} has changed since it was opened.",
            "It was built again in the meantime.",
            "Start the training again; it will read the new cache.",
        )
    return cache


def _check_numbers(batch_size: int, frames: int, start_step: int, rank: int, world_size: int, prefetch: int) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("frames", frames, 1),
        ("start_step", start_step, 0),
        ("rank", rank, 0),
        ("world_size", world_size, 1),
        ("prefetch", prefetch, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}.", f"It must be at least {least}.", f"Give another {name}.")
    if rank >= world_size or batch_size % world_size:
        raise UserError(
            f"Rank {rank} of {world_size} asks for its part of batches of {batch_size} clips.",
            "Ranks count from 0, and each gets as many clips of a batch.",
            f"Give a batch_size that is a multiple of {world_size}, and ranks from 0 to {world_size - 1}.",
        )


def _ahead(batch: Callable[[int], ClipBatch], step: int, prefetch: int) -> Iterator[ClipBatch]:
    """Batches from `step` on. One thread makes them in turn, so that an error comes in its place too."""
    if prefetch == 0:
        while True:
            yield batch(step)
            step += 1
    thread = ThreadPoolExecutor(1, thread_name_prefix="latent-batches")
    try:
        coming = deque(thread.submit(batch, step + ahead) for ahead in range(prefetch))
        while True:
            ready = coming.popleft().result()
            coming.append(thread.submit(batch, step + prefetch))
            step += 1
            yield ready
    finally:
        # not waited for: the garbage collector may end the iterator in that very thread
        thread.shutdown(wait=False, cancel_futures=True)
