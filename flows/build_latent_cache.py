"""Videos → latents, as a Prefect flow."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.chain.parameters import (
    Download,
    Overrides,
    Prune,
    RecipeName,
    Root,
    Source,
    Videos,
    open_workspace,
    with_parameter_docs,
)
from flows.serving.reporting import publish, run_task
from infra.artifacts.artifacts import Artifact

Shots = Annotated[bool, Field(description="Build the cache of the recipe's shot type, for a MotionLoRA.")]


@flow(name="build-latent-cache")
@with_parameter_docs
def build_latent_cache(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    source: Source = None,
    videos: Videos = None,
    shots: Shots = False,
    prune: Prune = False,
    download: Download = False,
) -> Artifact:
    """Checks, decodes and encodes videos into a latent cache. Only what is new or has changed is encoded."""
    workspace = open_workspace(recipe, overrides, root)
    build = workspace.shot_cache if shots else workspace.latent_cache
    return publish(
        run_task("videos to latents", lambda: build(source, videos, prune, download), retries=2),
        links={"checks": "data_docs/index.html"},
    )
