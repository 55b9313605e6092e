"""Chance without state: every random number is a function of a seed, what it is for, and the number of a sample.

Samples are numbered over a whole training, whatever the number of ranks, workers and machines. A run is then resumed by
one integer, and its numbers do not depend on who draws them or in which order.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key_of(use: str, seed: int) -> np.uint64:
    """A seed for each use of a seed, so that no two uses share their numbers."""
    return np.uint64(int.from_bytes(hashlib.sha256(f"{use} {seed}".encode()).digest()[:8], "big"))


def generator_of(key: np.uint64, sample: int | np.uint64) -> np.random.Generator:
    """The numbers of one sample: Philox, a counter-based generator (Salmon et al. 2011), keyed by both."""
    return np.random.Generator(np.random.Philox(key=np.array([key, sample], np.uint64)))
