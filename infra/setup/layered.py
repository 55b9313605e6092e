"""Where the boxes of a layered drawing stand: few lines cross, and none passes behind a box.

After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures" (1981): a line
that passes a row gets a bend there, each row takes the order with the fewest crossings, and each item then moves
towards the middle of those that it is tied to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise, permutations
from math import fsum

Item = tuple[str, int]
"""A box and its row, the lowest 0; with a higher row, the bend there of all lines that lead to the box."""
Tie = tuple[Item, Item]
"""An item and one of the row below that a line joins it with."""

SWEEPS = 400
BEND_WIDTH = 4.0
STRAIGHT = (1, 2, 8)
"""How strongly a tie with no, one and two bends pulls: long lines are straight in the middle."""


@dataclass(frozen=True)
class Drawing:
    """The items of each row from left to right, the lowest row first, their middles, and the lines between rows."""

    rows: list[list[Item]]
    middles: dict[Item, float]
    ties: list[Tie]


def drawing(rows: Sequence[Mapping[str, float]], edges: Mapping[str, set[str]], gap: float) -> Drawing:
    """Places boxes.

    Args:
        rows: the width of each box by its name, the lowest row first.
        edges: box → the boxes in lower rows that it has a line to.
        gap: the least room between two items of a row, in the unit of the widths.
    """
    ties = ties_between(rows, edges)
    items = [[(name, number) for name in row] for number, row in enumerate(rows)]
    for item in sorted({item for tie in ties for item in tie}):
        if item not in items[item[1]]:
            items[item[1]].append(item)
    ordered = ordered_rows(items, ties)
    widths = {item: rows[item[1]].get(item[0], BEND_WIDTH) for row in ordered for item in row}
    return Drawing(ordered, middles(ordered, ties, widths, gap), ties)


def ties_between(rows: Sequence[Mapping[str, float]], edges: Mapping[str, set[str]]) -> list[Tie]:
    """The lines cut at each row; those that lead to the same box share its bends."""
    row_of = {name: number for number, row in enumerate(rows) for name in row}
    ties: set[Tie] = set()
    for name, wanted in edges.items():
        for target in wanted:
            upper = (name, row_of[name])
            for number in range(row_of[name] - 1, row_of[target] - 1, -1):
                ties.add((upper, (target, number)))
                upper = (target, number)
    return sorted(ties)


def ordered_rows(rows: list[list[Item]], ties: Sequence[Tie]) -> list[list[Item]]:
    """The rows in the order with the fewest crossings that sweeps find, each trying every order of one row."""
    rows = [list(row) for row in rows]
    best: tuple[float, float] | None = None
    while best is None or crossings_and_lengths(rows, ties) < best:
        best = crossings_and_lengths(rows, ties)
        for number in (*range(len(rows)), *reversed(range(len(rows)))):
            near = [tie for tie in ties if number in (tie[0][1], tie[1][1])]
            rows[number] = list(min(permutations(rows[number]), key=partial(_cost, rows, number, near)))
    return rows


def _cost(
    rows: Sequence[Sequence[Item]], number: int, ties: Sequence[Tie], order: Sequence[Item]
) -> tuple[float, float]:
    return crossings_and_lengths([*rows[:number], order, *rows[number + 1 :]], ties)


def crossings_and_lengths(rows: Sequence[Sequence[Item]], ties: Sequence[Tie]) -> tuple[float, float]:
    """How many lines cross, and how far sideways all of them go, in shares of a row."""
    place = {item: (number + 0.5) / len(row) for row in rows for number, item in enumerate(row)}
    crossings = sum(
        one[0][1] == other[0][1] and (place[one[0]] - place[other[0]]) * (place[one[1]] - place[other[1]]) < 0
        for one, other in combinations(ties, 2)
    )
    return crossings, fsum(abs(place[upper] - place[lower]) for upper, lower in ties)


def middles(
    rows: Sequence[Sequence[Item]], ties: Sequence[Tie], widths: Mapping[Item, float], gap: float
) -> dict[Item, float]:
    """The middle of each item: as near to the middle of those it is tied to as its neighbours in the row allow."""
    x: dict[Item, float] = {}
    for row in rows:
        x.update(zip(row, apart([0.0] * len(row), [widths[item] for item in row], gap), strict=True))
    tied: dict[Item, list[Item]] = {item: [] for item in x}
    for one, other in ties:
        times = STRAIGHT[(widths[one] == BEND_WIDTH) + (widths[other] == BEND_WIDTH)]
        tied[one] += [other] * times
        tied[other] += [one] * times
    for _ in range(SWEEPS):
        for row in (*rows, *reversed(rows)):
            wanted = [_mean([x[other] for other in tied[item] or row]) for item in row]
            x.update(zip(row, apart(wanted, [widths[item] for item in row], gap), strict=True))
    return x


def apart(wanted: Sequence[float], widths: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones (least squares) at which nothing overlaps, the order kept."""
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + gap)
    pools: list[list[float]] = []  # pool adjacent violators
    for value in (want - offset for want, offset in zip(wanted, offsets, strict=True)):
        pools.append([value])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    places = [_mean(pool) for pool in pools for _ in pool]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)  # fsum: the same bits in every Python
