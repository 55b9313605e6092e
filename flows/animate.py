"""Weights → animation, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import Overrides, Prompt, RecipeName, Root, Seed, open_workspace, with_parameter_docs
from flows.serving.reporting import publish, run_task
from infra.artifacts.artifacts import Artifact


@flow(name="animate")
@with_parameter_docs
def animate(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    prompt: Prompt = None,
    seed: Seed = None,
) -> Artifact:
    """Animates the recipe's personalised model with the weights under the root folder."""
    workspace = open_workspace(recipe, overrides, root)
    return publish(run_task("weights to animation", lambda: workspace.animation(prompt, seed)), picture="animation.gif")
