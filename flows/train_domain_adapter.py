"""Latents → domain adapter, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import Cache, Overrides, RecipeName, Root, Workers, open_workspace, with_parameter_docs
from flows.serving.reporting import run_training
from infra.artifacts.artifacts import Artifact


@flow(name="train-domain-adapter")
@with_parameter_docs
def train_domain_adapter(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    cache: Cache = None,
    workers: Workers = 1,
) -> Artifact:
    """Stage 1: a LoRA on the image layers takes up the look of the training videos, from single frames."""
    workspace = open_workspace(recipe, overrides, root)
    return run_training(
        "domain-adapter",
        "latents to domain adapter",
        lambda on_step: workspace.domain_adapter(cache, on_step, workers),
    )
