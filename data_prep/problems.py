"""Why a row of a source has no video."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """A code and a sentence."""

    reason: str
    message: str
