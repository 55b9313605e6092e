"""CLIP scores of one animation: text alignment, domain similarity, smoothness. F frames, K references, D embedding.

AnimateDiff's paper (sec. 5.2) names the three aspects and leaves encoder and frame pairs open; both smoothness rules
are computed here, and every row carries the encoder, because scores of different encoders cannot be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from components.clip.clip import Float


@dataclass(frozen=True)
class ClipScores:
    """The CLIP scores of one animation, all 100 times a cosine."""

    text_alignment: float
    """Mean over frames of frame against prompt."""
    text_alignment_frames: list[float]
    """The same for each frame."""
    domain_similarity: float
    """Mean over frames and references."""
    domain_similarity_max: float
    """Mean over frames of the closest reference; near 100 when a reference was copied."""
    reference_ceiling: float
    """Mean over pairs of different references: what the image model scores against itself. NaN with one reference."""
    smoothness_consecutive: float
    """Mean over neighbouring frames. A frozen clip scores 100: read it beside the motion. NaN with one frame."""
    smoothness_pairs: float
    """Mean over all pairs of different frames (Tune-A-Video's rule). NaN with one frame."""


def score_clip(frames_FD: Float, text_D: Float, references_KD: Float) -> ClipScores:
    """The scores from normalised embeddings."""
    text = 100 * frames_FD @ text_D
    domain = 100 * frames_FD @ references_KD.T
    following = 100 * (frames_FD[:-1] * frames_FD[1:]).sum(axis=1)
    return ClipScores(
        text_alignment=float(text.mean()),
        text_alignment_frames=[float(value) for value in text],
        domain_similarity=float(domain.mean()),
        domain_similarity_max=float(domain.max(axis=1).mean()),
        reference_ceiling=_mean_of_pairs(references_KD),
        smoothness_consecutive=float(following.mean()) if len(following) else math.nan,
        smoothness_pairs=_mean_of_pairs(frames_FD),
    )


def _mean_of_pairs(vectors_ND: Float) -> float:
    """100 times the mean cosine over all i != j; NaN for fewer than two vectors."""
    count = len(vectors_ND)
    if count < 2:
        return math.nan
    cosines = vectors_ND @ vectors_ND.T
    return float(100 * (cosines.sum() - np.trace(cosines)) / (count * (count - 1)))
