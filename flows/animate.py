"""Weights → animation, as a Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows.chain.parameters import Overrides, Prompt, RecipeName, Root, Seed, explained, work_of
from flows.serving.reporting import carry_out, show
from infra.artifacts.artifacts import Artifact


@flow(name="animate")
@explained
def animate(
    recipe: RecipeName = "pocket",
    overrides: Overrides = (),
    root: Root = None,
    prompt: Prompt = None,
    seed: Seed = None,
) -> Artifact:
    """Animates the recipe's personalised model with the weights under the root folder."""
    work = work_of(recipe, overrides, root)
    return show(carry_out("weights to animation", lambda: work.animation(prompt, seed)), picture="animation.gif")
