"""Weights → animations → scores, as a Prefect flow."""

from __future__ import annotations

import time
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.chain.parameters import Overrides, RecipeName, Root, explained, work_of
from flows.serving.reporting import carry_out, first_picture, show
from infra.artifacts.artifacts import Artifact

Dated = Annotated[
    bool,
    Field(description="Score anew into a folder named by today's date and time, as the schedule does."),
]


@flow(name="benchmark")
@explained
def benchmark(
    recipe: RecipeName = "pocket", overrides: Overrides = (), root: Root = None, dated: Dated = False
) -> Artifact:
    """Animates every prompt with every model and method of the recipe, scores them, and writes one HTML report."""
    work = work_of(recipe, overrides, root)
    name = time.strftime("scores-%Y-%m-%d-%H%M%S") if dated else "scores"
    artifact = carry_out("weights to scores", lambda: work.benchmark(name), retries=1)
    return show(artifact, picture=first_picture(artifact.folder, "animations/**/*.gif"))
