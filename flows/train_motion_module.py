"""Latents → motion module, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import (
    Adapter,
    Cache,
    Overrides,
    RecipeName,
    Root,
    Workers,
    open_workspace,
    with_parameter_docs,
)
from flows.serving.reporting import run_training
from infra.artifacts.artifacts import Artifact


@flow(name="train-motion-module")
@with_parameter_docs
def train_motion_module(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    cache: Cache = None,
    domain_adapter: Adapter = None,
    workers: Workers = 1,
) -> Artifact:
    """Stage 2: the temporal transformer that moves every personalised version of the base model."""
    workspace = open_workspace(recipe, overrides, root)
    return run_training(
        "motion-module",
        "latents to motion module",
        lambda on_step: workspace.motion_module(cache, domain_adapter, on_step, workers),
    )
