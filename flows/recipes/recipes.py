"""All recipes: functions that return a config. A variant calls another recipe and replaces fields.

`--set FIELD=VALUE` changes one field of a recipe from the command line: `--set motion_module.train.steps=200`.
"""

from __future__ import annotations

from collections.abc import Callable

from flows.recipes.pocket import pocket, pocket_full
from flows.recipes.recipe import Recipe
from flows.recipes.sd15 import sd15
from infra.errors import UserError

RECIPES: dict[str, Callable[[], Recipe]] = {"pocket": pocket, "pocket-full": pocket_full, "sd15": sd15}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is no such recipe; the message lists all.
    """
    if name not in RECIPES:
        raise UserError(
            f"There is no recipe {name!r}.", f"Recipes: {', '.join(RECIPES)}.", "Pass one of them to --recipe."
        )
    return RECIPES[name]()
