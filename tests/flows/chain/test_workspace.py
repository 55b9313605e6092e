"""A recipe under a root: places, what is made upstream, and that nothing is looked at twice."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.chain import steps
from flows.chain.workspace import STEPS, Workspace, slug
from flows.recipes.pocket import pocket


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every step, replaced by one that only notes where it would write."""
    made: list[Path] = []
    for name in ("latent_cache", "train", "animation", "benchmark"):

        def note(*arguments: object) -> SimpleNamespace:
            out = [argument for argument in arguments if isinstance(argument, Path)][-1]
            made.append(out)
            return SimpleNamespace(folder=out)

        monkeypatch.setattr(steps, name, note)
    return made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    recipe = pocket()
    return Workspace(recipe.replace(footage__count=1, shot_footage__count=1), tmp_path)


def test_a_stage_makes_what_it_needs_first_and_each_thing_once(workspace: Workspace, calls: list[Path]):
    workspace.benchmark()
    assert [path.relative_to(workspace.root).as_posix() for path in calls] == [
        "latent-cache/footage",
        "domain-adapter/adapter",
        "motion-module/motion",
        "latent-cache/zoom-in",
        "motion-lora/zoom-in",
        "benchmark/scores",
    ]


def test_the_stages_in_order_make_each_thing_once(workspace: Workspace, calls: list[Path]):
    for _, make in STEPS:
        make(workspace)
    assert len(calls) == len(set(calls)) == len(STEPS)


def test_given_paths_are_taken_as_they_are(workspace: Workspace, calls: list[Path]):
    workspace.motion_lora(Path("shots"), Path("motion"), Path("adapter"))
    assert calls == [workspace.root / "motion-lora/zoom-in"]
    workspace.motion_module(Path("cache"))
    assert calls[1:] == [workspace.root / "domain-adapter/adapter", workspace.root / "motion-module/motion"]


def test_an_animation_is_named_after_its_prompt(workspace: Workspace, calls: list[Path]):
    workspace.animation("A fox, running!", 3)
    assert calls[-1].name == "a-fox-running-3"
    assert slug("…") == "animation"
