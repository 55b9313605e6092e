"""Weights → animations → scores, as a Prefect flow."""

from __future__ import annotations

import time
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.chain.parameters import Overrides, RecipeName, Root, open_workspace, with_parameter_docs
from flows.serving.reporting import find_picture, publish, run_task
from infra.artifacts.artifacts import Artifact

Dated = Annotated[
    bool,
    Field(description="Score again, into a folder named by today's date and time, as the schedule does."),
]


@flow(name="benchmark")
@with_parameter_docs
def benchmark(
    recipe: RecipeName = "pocket", overrides: Overrides = (), root: Root = None, dated: Dated = False
) -> Artifact:
    """Animates every prompt with every model and method of the recipe, scores them, and writes one HTML report."""
    workspace = open_workspace(recipe, overrides, root)
    name = time.strftime("scores-%Y-%m-%d-%H%M%S") if dated else "scores"
    artifact = run_task("weights to scores", lambda: workspace.benchmark(name), retries=1)
    return publish(artifact, picture=find_picture(artifact.folder, "animations/**/*.gif"))
