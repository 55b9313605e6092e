"""All flows in order: video → latents → weights → animation → scores."""

from __future__ import annotations

from prefect import flow

from flows.animate import animate
from flows.benchmark import benchmark
from flows.build_latent_cache import build_latent_cache
from flows.chain.parameters import Overrides, RecipeName, Root, with_parameter_docs
from flows.train_domain_adapter import train_domain_adapter
from flows.train_motion_lora import train_motion_lora
from flows.train_motion_module import train_motion_module
from infra.artifacts.artifacts import Artifact


@flow(name="pipeline")
@with_parameter_docs
def pipeline(recipe: RecipeName = "pocket", overrides: Overrides = (), root: Root = None) -> Artifact:
    """Runs all flows in order. Artifacts that exist are not made again."""
    build_latent_cache(recipe, overrides, root)
    build_latent_cache(recipe, overrides, root, shots=True)
    train_domain_adapter(recipe, overrides, root)
    train_motion_module(recipe, overrides, root)
    train_motion_lora(recipe, overrides, root)
    animate(recipe, overrides, root)
    return benchmark(recipe, overrides, root)
