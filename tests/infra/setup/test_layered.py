"""Layered drawings: where the fewest lines cross, nothing overlaps, and long lines pass between the boxes."""

import itertools
import random

import pytest

from infra.setup.layered import apart, crossings_and_lengths, drawing, ordered_rows, ties_between

GAP = 10.0


def random_layers(seed: int) -> tuple[list[dict[str, float]], dict[str, set[str]]]:
    """Five rows of up to four boxes, each box with up to three lines to lower rows."""
    draw = random.Random(seed)
    rows = [{f"{row}{n}": draw.uniform(20, 90) for n in range(draw.randint(1, 4))} for row in "abcde"]
    below: list[str] = []
    edges: dict[str, set[str]] = {}
    for row in rows:
        edges |= {name: set(draw.sample(below, min(len(below), draw.randint(0, 3)))) for name in row}
        below += row
    return rows, edges


@pytest.mark.parametrize("seed", range(5))
def test_boxes_keep_apart_and_lines_pass_between_them(seed: int):
    rows, edges = random_layers(seed)
    plan = drawing(rows, edges, GAP)
    for row in plan.rows:
        for left, right in itertools.pairwise(row):
            halves = sum(rows[item[1]].get(item[0], 0.0) / 2 for item in (left, right))
            assert plan.middles[right] - plan.middles[left] >= halves + GAP - 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_every_line_goes_row_by_row_to_its_box(seed: int):
    rows, edges = random_layers(seed)
    ties = set(drawing(rows, edges, GAP).ties)
    row_of = {name: number for number, row in enumerate(rows) for name in row}
    assert all(upper[1] == lower[1] + 1 for upper, lower in ties)
    for name, wanted in edges.items():
        for target in wanted:
            way = [(name, row_of[name]), *((target, number) for number in range(row_of[name] - 1, -1, -1))]
            assert set(itertools.pairwise(way[: row_of[name] - row_of[target] + 1])) <= ties


def test_lines_are_uncrossed():
    rows = [{"a": 9.0, "b": 9.0, "c": 9.0}, {"d": 9.0, "e": 9.0, "f": 9.0}]
    edges = {"d": {"c"}, "e": {"b"}, "f": {"a"}}
    ties = ties_between(rows, edges)
    declared = [[(name, number) for name in row] for number, row in enumerate(rows)]
    assert crossings_and_lengths(declared, ties)[0] == 3
    assert crossings_and_lengths(ordered_rows(declared, ties), ties) == (0, 0)


def test_the_nearest_places_without_overlap():
    assert apart([0, 100], [10, 10], GAP) == [0, 100], "enough room"
    assert apart([0, 0], [10, 10], GAP) == [-10, 10], "both give way"
    assert apart([0, 0, 90], [10, 10, 10], GAP) == [-10, 10, 90]
    assert apart([5, 0, 1], [10, 10, 10], GAP) == pytest.approx([-18, 2, 22]), "the order is kept"


def test_a_box_stands_over_the_middle_of_what_it_is_tied_to():
    plan = drawing([{"a": 10.0, "b": 30.0}, {"c": 50.0}], {"c": {"a", "b"}}, GAP)
    a, b, c = (plan.middles[item] for item in (("a", 0), ("b", 0), ("c", 1)))
    assert c == pytest.approx((a + b) / 2)
