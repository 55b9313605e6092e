"""Which clip and which window a training sample is, by arithmetic alone: no state, no list, no memory.

Samples are numbered 0, 1, 2, … over a whole training, whatever the world size; step s of batches of B holds the
samples s·B … s·B + B − 1. All of it is integer arithmetic on 64 bits, so the order is the same on every machine and
with every version of every library, and step 10¹⁵ costs what step 0 costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.seeds import key_for

Unsigned = NDArray[np.uint64]
Places = NDArray[np.int64]

ROUNDS = 64
HIGH_HALF = np.uint64(32)  # a random number below n is the high half of n times the high half of a random one


def splitmix64(seed: Unsigned | np.uint64, index: Unsigned) -> Unsigned:
    """The `index`-th output, from 0, of SplitMix64 (Steele, Lea, Flood 2014): a random function of both."""
    z = seed + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(places: Unsigned, epochs: Unsigned, count: int, key: np.uint64) -> Unsigned:
    """Where each of `places` (below `count`, itself below 2³²) goes in the shuffle of its epoch, which is a bijection.

    The swap-or-not shuffle (Hoang, Morris, Rogaway 2012, fig. 1): a round pairs each place with a partner, and swaps
    the pair or not. It needs no power of two, and is uniform over all orders of a handful of clips too, which a Feistel
    network is not. Neighbours stay neighbours through a round with probability 1/2.
    """
    n = np.uint64(count)
    keys = splitmix64(splitmix64(key, epochs)[None], np.arange(ROUNDS, dtype=np.uint64)[:, None])  # (ROUNDS, samples)
    out = places
    for round_keys in keys:
        partner = (((round_keys >> HIGH_HALF) * n >> HIGH_HALF) + n - out) % n
        swap = splitmix64(round_keys, np.maximum(out, partner)) >> np.uint64(63)
        out = np.where(swap == 1, partner, out)
    return out


@dataclass(frozen=True)
class Order:
    """The samples of a training.

    An epoch is a fresh shuffle of the clips, cut into whole batches: what is left over, fewer clips than a batch, is
    not seen in that epoch, and no batch holds a clip twice. Where a batch is larger than the number of clips, shuffles
    follow each other without a gap, and a batch repeats clips as evenly as it can.
    """

    clips: int
    batch_size: int
    """Clips a step, of all ranks together."""
    seed: int

    @property
    def epoch_samples(self) -> int:
        """Samples in an epoch."""
        return self.clips // self.batch_size * self.batch_size or self.clips

    def samples(self, step: int, rank: int = 0, world_size: int = 1) -> Unsigned:
        """Numbers of the samples of a rank's part of a step; the parts in rank order are the whole batch."""
        part = self.batch_size // world_size
        return np.uint64(step * self.batch_size + rank * part) + np.arange(part, dtype=np.uint64)

    def places(self, samples: Unsigned) -> Places:
        """The clip of each sample, 0 … clips − 1."""
        epochs, places = np.divmod(samples, np.uint64(self.epoch_samples))
        return shuffled(places, epochs, self.clips, key_for("clip", self.seed)).astype(np.int64)

    def starts(self, samples: Unsigned, windows: NDArray[np.signedinteger[Any]]) -> Places:
        """Where each sample's window starts, of `windows` places that it may start at."""
        drawn = splitmix64(key_for("window", self.seed), samples) >> HIGH_HALF
        return (drawn * windows.astype(np.uint64) >> HIGH_HALF).astype(np.int64)
