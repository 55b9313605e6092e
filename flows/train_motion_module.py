"""Latents → motion module, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import Adapter, Cache, Overrides, RecipeName, Root, Workers, explained, work_of
from flows.serving.reporting import TrainingProgress, carry_out, show
from infra.artifacts.artifacts import Artifact


@flow(name="train-motion-module")
@explained
def train_motion_module(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    cache: Cache = None,
    domain_adapter: Adapter = None,
    workers: Workers = 1,
) -> Artifact:
    """Stage 2: the temporal transformer that moves every personalised version of the base model."""
    work = work_of(recipe, overrides, root)
    progress = TrainingProgress("motion-module")
    artifact = carry_out(
        "latents to motion module", lambda: work.motion_module(cache, domain_adapter, progress, workers)
    )
    progress.done()
    return show(artifact, picture="loss.png")
