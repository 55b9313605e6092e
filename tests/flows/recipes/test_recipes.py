"""Recipes: each is whole, differs from the others, and takes overrides."""

from pathlib import Path

import pytest

from flows.recipes.pocket import pocket
from flows.recipes.recipe import Recipe
from flows.recipes.recipes import RECIPES, recipe_named
from flows.recipes.sd15 import sd15
from infra.config import apply_overrides
from infra.errors import UserError


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_pure_function(name: str):
    assert recipe_named(name).fingerprint() == recipe_named(name).fingerprint()


def test_recipes_differ():
    assert len({recipe().fingerprint() for recipe in RECIPES.values()}) == len(RECIPES)


def test_a_recipe_survives_json():
    assert Recipe.model_validate_json(pocket().model_dump_json()) == pocket()


def test_the_flows_offer_exactly_the_recipes_there_are():
    from typing import get_args

    from flows.chain.parameters import RecipeName

    assert set(get_args(get_args(RecipeName)[0])) == set(RECIPES)


def test_every_field_says_what_it_means():
    def undocumented(config: type, path: str = "") -> list[str]:
        found = []
        for name, field in config.model_fields.items():
            if not field.description:
                found.append(f"{path}{name}")
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                found += undocumented(field.annotation, f"{path}{name}.")
        return found

    assert undocumented(Recipe) == []


def test_overrides_reach_every_part():
    changed = apply_overrides(pocket(), ["motion_module.train.steps=7", "cache.size=32", "footage.count=5"])
    assert (changed.motion_module.train.steps, changed.cache.size, changed.footage.count) == (7, 32, 5)
    assert changed.fingerprint() != pocket().fingerprint()


def test_a_recipe_without_videos_says_how_to_name_them(tmp_path: Path):
    with pytest.raises(UserError, match=r"--set footage\.source"):
        sd15().footage.provide(tmp_path)
    given = apply_overrides(sd15(), ["footage.source=a.csv", "footage.videos=b"]).footage.provide(tmp_path)
    assert (given.source, given.videos) == ("a.csv", "b")


def test_drawn_clips_are_drawn_once(tmp_path: Path):
    footage = pocket().footage.replace(count=2)
    first = footage.provide(tmp_path / "clips")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").rglob("*")}
    assert footage.provide(tmp_path / "clips") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "clips").rglob("*")} == before
    assert first.source.is_file()
    with pytest.raises(UserError, match="count was 2 and is now 3"):
        footage.replace(count=3).provide(tmp_path / "clips")


def test_the_run_s_own_weights_become_methods_of_the_benchmark(tmp_path: Path):
    plan = pocket().benchmark
    fixed = [method.name for method in plan.methods]
    with_motion = plan.with_weights(tmp_path / "motion", None, None)
    assert [method.name for method in with_motion.methods] == [*fixed, "this-run"]
    with_all = plan.with_weights(tmp_path / "motion", tmp_path / "lora", tmp_path / "adapter")
    assert [method.name for method in with_all.methods] == [*fixed, "this-run", "this-run-motion-lora"]
    assert with_all.methods[-1].domain_adapter is None, "the adapter is left out at alpha 0"
    half = plan.replace(domain_adapter_alpha=0.5).with_weights(tmp_path / "m", None, tmp_path / "adapter")
    assert half.methods[-1].domain_adapter.scale == 0.5


def test_sd15_has_the_noise_schedules_of_the_official_configs():
    """image_finetune.yaml has scaled_linear, training.yaml linear."""
    recipe = sd15()
    stages = (recipe.domain_adapter, recipe.motion_module, recipe.motion_lora)
    assert [stage.train.beta_schedule for stage in stages] == ["scaled_linear", "linear", "linear"]
