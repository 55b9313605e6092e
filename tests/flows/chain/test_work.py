"""A recipe under a root: places, what is made upstream, and that nothing is looked at twice."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.chain import steps
from flows.chain.work import STAGES, Work, slug
from flows.recipes.pocket import pocket


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every step, replaced by one that only notes where it would write."""
    made: list[Path] = []
    for name in ("latent_cache", "domain_adapter", "motion_module", "motion_lora", "animation", "benchmark"):

        def note(*arguments: object) -> SimpleNamespace:
            out = [argument for argument in arguments if isinstance(argument, Path)][-1]
            made.append(out)
            return SimpleNamespace(folder=out)

        monkeypatch.setattr(steps, name, note)
    return made


@pytest.fixture
def work(tmp_path: Path) -> Work:
    recipe = pocket()
    return Work(recipe.replace(footage__count=1, shot_footage__count=1), tmp_path)


def test_a_stage_makes_what_it_needs_first_and_each_thing_once(work: Work, calls: list[Path]):
    work.benchmark()
    assert [path.relative_to(work.root).as_posix() for path in calls] == [
        "latent-cache/footage",
        "domain-adapter/adapter",
        "motion-module/motion",
        "latent-cache/zoom-in",
        "motion-lora/zoom-in",
        "benchmark/scores",
    ]


def test_the_stages_in_order_make_each_thing_once(work: Work, calls: list[Path]):
    for _, make in STAGES:
        make(work)
    assert len(calls) == len(set(calls)) == len(STAGES)


def test_given_paths_are_taken_as_they_are(work: Work, calls: list[Path]):
    work.motion_lora(Path("shots"), Path("motion"), Path("adapter"))
    assert calls == [work.root / "motion-lora/zoom-in"]
    work.motion_module(Path("cache"))
    assert calls[1:] == [work.root / "domain-adapter/adapter", work.root / "motion-module/motion"]


def test_an_animation_is_named_after_its_prompt(work: Work, calls: list[Path]):
    work.animation("A fox, running!", 3)
    assert calls[-1].name == "a-fox-running-3"
    assert slug("…") == "animation"
