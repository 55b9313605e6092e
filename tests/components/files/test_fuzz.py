"""Damaged and forged weight files: every one is refused with our error, or read whole; never a crash, never a part.

The files are drawn by hypothesis (`tests.components.files.mutations`) and judged by
`tests.components.files.readers`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.components.files.fuzz_setup import Bench
from tests.components.files.mutations.files import damage_config, mutate
from tests.components.files.mutations.raw import Draw
from tests.components.files.readers import READERS, Reader, outcome


def damaged(bench: Bench, reader: Reader, draw: Draw) -> Path:
    path = bench.copy_of(reader.name)
    part = path / draw(st.sampled_from(reader.damaged))
    (damage_config if part.name == "config.json" else mutate)(draw, part)
    return path


def run(bench: Bench, reader: Reader, examples: int, number: int) -> Counter[str]:
    counts: Counter[str] = Counter()

    @seed(zlib.crc32(reader.name.encode()) + number)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        path = damaged(bench, reader, data.draw)
        convert = data.draw(st.sampled_from(("neither", "neither", "export_weights", "import_original")))
        counts[outcome(bench, reader, path, convert)] += 1

    tried()
    print(f"\n{reader.name}: {dict(counts)}")
    return counts


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_or_read_whole(name: str, bench: Bench) -> None:
    counts = run(bench, READERS[name], READERS[name].examples, 0)
    assert counts["refused"] > READERS[name].examples / 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_twenty_times_as_many_are_refused_or_read_whole(name: str, bench: Bench) -> None:
    examples = 20 * READERS[name].examples
    counts = run(bench, READERS[name], examples, 1)
    assert counts["refused"] > examples / 4
    assert counts["whole"] > examples / 20


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read_whole(name: str, bench: Bench) -> None:
    assert outcome(bench, READERS[name], bench.copy_of(name)) == "whole"
