"""Latents of one shot type → MotionLoRA, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import (
    Adapter,
    Cache,
    Motion,
    Overrides,
    RecipeName,
    Root,
    Workers,
    open_workspace,
    with_parameter_docs,
)
from flows.serving.reporting import run_training
from infra.artifacts.artifacts import Artifact


@flow(name="train-motion-lora")
@with_parameter_docs
def train_motion_lora(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    cache: Cache = None,
    motion_module: Motion = None,
    domain_adapter: Adapter = None,
    workers: Workers = 1,
) -> Artifact:
    """Stage 3: a LoRA on the temporal attention learns one shot type from a few reference clips."""
    workspace = open_workspace(recipe, overrides, root)
    return run_training(
        "motion-lora",
        "latents to MotionLoRA",
        lambda on_step: workspace.motion_lora(cache, motion_module, domain_adapter, on_step, workers),
    )
