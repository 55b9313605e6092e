"""2N steps equal N, SIGKILL and the rest, bit for bit: weights, optimizer, average, curves, and the batches drawn."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from components.train.loop.checkpoints import MANIFEST, STATE
from tests.components.conftest import DrawnClips
from tests.components.stages.killing import STEPS, WEIGHTS, Given, batches_of, kept, run

FILES_OF_A_CHECKPOINT = 5  # weights, optimizer, ema, state, manifest
Batches = dict[int, list[object]]


@pytest.fixture(scope="module", params=list(WEIGHTS))
def whole(
    request: pytest.FixtureRequest,
    base_folder: Path,
    clips: DrawnClips,
    trained: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Given:
    """A training that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    given = Given(request.param, base_folder, clips.vae_sha256, trained["motion-module"], out)
    assert run(given) == 0
    return given


def batches(out: Path) -> tuple[Batches, list[int]]:
    """By number, and the numbers as they were drawn; a batch that is drawn twice is the same."""
    found: Batches = {}
    drawn: list[int] = []
    for line in batches_of(out).read_text().splitlines():
        number, *batch = json.loads(line)
        assert found.setdefault(number, batch) == batch
        drawn.append(number)
    return found, drawn


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(out: Path, whole: Given) -> None:
    assert (out / WEIGHTS[whole.stage]).read_bytes() == (whole.out / WEIGHTS[whole.stage]).read_bytes()
    found, expected = files(kept(out)), files(kept(whole.out))
    assert set(found) == {"weights.safetensors", "optimizer.safetensors", "ema.safetensors", STATE, MANIFEST}
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert batches(out)[0] == batches(whole.out)[0]
    assert not (out / "checkpoints").exists()


def killed(whole: Given, out: Path, after_seconds: float | None = None, at_write: int | None = None) -> int:
    """How often a training that is killed, and started again as often, was killed."""
    kills = 0
    while run(replace(whole, out=out, after_seconds=after_seconds, at_write=at_write)):
        kills += 1
        if out.exists():
            break  # it was whole already
        if at_write is not None:
            at_write = None
        elif after_seconds is not None:
            after_seconds *= 2  # at last it is through
    same(out, whole)
    return kills


def test_killed_at_some_time(whole: Given, tmp_path: Path) -> None:
    assert killed(whole, tmp_path / "out", after_seconds=0.15) > 0
    drawn = batches(tmp_path / "out")[1]
    assert len(drawn) > len(batches(whole.out)[1])
    starts = [number for before, number in pairwise([drawn[0], *drawn]) if number <= before]
    assert starts[-1] > drawn[0]  # at last it went on, and did not begin anew


def test_killed_while_it_writes_a_checkpoint(whole: Given, tmp_path: Path) -> None:
    for file in (2, FILES_OF_A_CHECKPOINT):
        out = tmp_path / str(file)
        assert killed(whole, out, at_write=2 * FILES_OF_A_CHECKPOINT + file) == 1
        assert 2 * STEPS + 2 <= len(batches(out)[1]) <= 2 * STEPS + 10


@pytest.mark.slow
def test_killed_at_more_than_twenty_random_times(whole: Given, tmp_path: Path) -> None:
    chance, kills = random.Random(whole.stage), 0
    for number in range(12):
        out = tmp_path / str(number)
        kills += killed(whole, out, after_seconds=chance.uniform(0.0, 1.0))
        writes = chance.randrange(1, (STEPS - 1) * FILES_OF_A_CHECKPOINT + 1)
        kills += killed(whole, tmp_path / f"{number}-writing", at_write=writes)
    print(f"{whole.stage}: killed {kills} times")
    assert kills >= 20
