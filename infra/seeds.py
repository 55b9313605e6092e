"""Random numbers without state: each is a function of a seed, a purpose and a sample number.

Samples are numbered through a whole training, whatever the world size. So a run is resumed from one integer, and its
random numbers do not depend on which process draws them or in which order.
"""

from __future__ import annotations

import hashlib

import numpy as np


def key_for(purpose: str, seed: int) -> np.uint64:
    """A key for each purpose of a seed, so that no two purposes share random numbers."""
    return np.uint64(int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "big"))


def generator_for(key: np.uint64, sample: int | np.uint64) -> np.random.Generator:
    """The generator of one sample: Philox (Salmon et al. 2011), counter-based, keyed by `key` and sample number."""
    return np.random.Generator(np.random.Philox(key=np.array([key, sample], np.uint64)))
