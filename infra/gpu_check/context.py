"""What every check gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.gpu_check.rows import Row, at_least, at_most
from infra.gpu_check.sizes import Sizes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Context:
    """`rows` are what the checks before have found."""

    device: torch.device
    sizes: Sizes
    rows: Sequence[Row] = ()

    def value(self, what: str) -> float | None:
        """What was found; None where that check failed or was not reached."""
        found = [row.value for row in self.rows if row.what == what and isinstance(row.value, float)]
        return found[-1] if found else None

    def at_least(self, least: float, what: str, value: float, unit: str = "", note: str = "") -> Row:
        """Held against its target where sizes are such that speeds mean something."""
        return at_least(least, what, value, unit, note) if self.sizes.judged else Row(what, value, unit, note=note)

    def at_most(self, most: float, what: str, value: float, unit: str = "", note: str = "") -> Row:
        """As `at_least`."""
        return at_most(most, what, value, unit, note) if self.sizes.judged else Row(what, value, unit, note=note)
