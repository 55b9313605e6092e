"""The parameters of the flows. Prefect shows them as a validated form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

from flows.chain.workspace import Workspace
from infra.config import apply_overrides

Function = TypeVar("Function", bound=Callable[..., Any])

RecipeName = Annotated[Literal["pocket", "pocket-full", "sd15"], Field(description="The config to start from.")]
Overrides = Annotated[
    Sequence[str],
    Field(
        description="Fields of the recipe to change, one FIELD=VALUE each, such as motion_module.train.steps=200.",
    ),
]
Root = Annotated[
    Path | None,
    Field(description="The folder of all artifacts of this recipe; empty: runs/<recipe>."),
]
Cache = Annotated[
    Path | None,
    Field(
        description="The latent cache to train on; empty: the recipe's own, built if missing.",
    ),
]
Adapter = Annotated[
    Path | None,
    Field(
        description="Active and frozen during training; empty: the recipe's own, trained if missing.",
    ),
]
Motion = Annotated[
    Path | None,
    Field(
        description="The motion module to adapt; empty: the recipe's own, trained if missing.",
    ),
]
Workers = Annotated[
    int,
    Field(
        ge=1,
        description="Processes that share every batch, a GPU each if there are any; same recipe, same result.",
    ),
]
Source = Annotated[
    str | None,
    Field(
        description="WebVid CSV, JSONL, Parquet, folder with captions or WebDataset .tar, as a path or an fsspec "
        "address such as s3://bucket/table.csv; empty: the recipe's own footage.",
    ),
]
Videos = Annotated[str | None, Field(description="The folder, or its address, that the rows of a table refer to.")]
Prune = Annotated[bool, Field(description="Drop clips whose rows or videos are no longer in the source.")]
Download = Annotated[bool, Field(description="Fetch missing videos of a WebVid table from its contentUrl first.")]
Prompt = Annotated[str | None, Field(description="What to show, and how it moves; empty: the recipe's.")]
Seed = Annotated[int | None, Field(ge=0, description="Same seed, same animation; empty: the recipe's.")]


def with_parameter_docs(function: Function) -> Function:
    """Appends the parameters' descriptions to the docstring, where Prefect reads them."""
    hints = get_type_hints(function, include_extras=True)
    lines = [
        f"    {name}: {field.description}"
        for name, hint in hints.items()
        for field in getattr(hint, "__metadata__", ())
        if isinstance(field, FieldInfo)
    ]
    function.__doc__ = "\n".join([function.__doc__ or "", "", "Args:", *lines])
    return function


def open_workspace(recipe: str, overrides: Sequence[str], root: Path | None) -> Workspace:
    """The workspace of a recipe with these overrides, under its root folder.

    Raises:
        UserError: unknown recipe, field or value.
    """
    from flows.recipes.recipes import recipe_named  # heavy, and not needed to deploy a flow

    return Workspace(apply_overrides(recipe_named(recipe), list(overrides)), root or Path("runs") / recipe)
