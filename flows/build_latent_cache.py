"""Videos → latents, as a Prefect flow."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.chain.parameters import Download, Overrides, Prune, RecipeName, Root, Source, Videos, explained, work_of
from flows.serving.reporting import carry_out, show
from infra.artifacts.artifacts import Artifact

Shots = Annotated[bool, Field(description="Build the cache of the recipe's shot type, for a MotionLoRA.")]


@flow(name="build-latent-cache")
@explained
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
    work = work_of(recipe, overrides, root)
    build = work.shot_cache if shots else work.latent_cache
    return show(
        carry_out("videos to latents", lambda: build(source, videos, prune, download), retries=2),
        links={"checks": "data_docs/index.html"},
    )
