"""Latents → domain adapter, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import Cache, Overrides, RecipeName, Root, Workers, explained, work_of
from flows.serving.reporting import TrainingProgress, carry_out, show
from infra.artifacts.artifacts import Artifact


@flow(name="train-domain-adapter")
@explained
def train_domain_adapter(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    cache: Cache = None,
    workers: Workers = 1,
) -> Artifact:
    """Stage 1: a LoRA on the image layers takes up the look of the training videos, from single frames."""
    work = work_of(recipe, overrides, root)
    progress = TrainingProgress("domain-adapter")
    artifact = carry_out("latents to domain adapter", lambda: work.domain_adapter(cache, progress, workers))
    progress.done()
    return show(artifact, picture="loss.png")
