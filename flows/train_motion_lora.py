"""Latents of one shot type → MotionLoRA, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import Adapter, Cache, Motion, Overrides, RecipeName, Root, Workers, explained, work_of
from flows.serving.reporting import TrainingProgress, carry_out, show
from infra.artifacts.artifacts import Artifact


@flow(name="train-motion-lora")
@explained
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
    work = work_of(recipe, overrides, root)
    progress = TrainingProgress("motion-lora")
    artifact = carry_out(
        "latents to MotionLoRA", lambda: work.motion_lora(cache, motion_module, domain_adapter, progress, workers)
    )
    progress.done()
    return show(artifact, picture="loss.png")
