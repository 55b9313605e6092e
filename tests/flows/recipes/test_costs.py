"""The README's figures of memory, disk and hours are those that the code counts."""

from flows.recipes.costs import README, table


def test_the_readme_has_the_counted_costs():
    assert table() in README.read_text(encoding="utf-8"), "run `python -m flows.recipes.costs`"
