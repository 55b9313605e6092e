"""A cache read by other libraries, in a process that cannot import this project, Ray or torch."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.artifacts.artifacts import Artifact
from tests.data_prep.builder.building import rows_of
from tests.data_prep.cache_files import C, H, W, cache_row, write_cache

FRAMES = [4, 6, 5, 9, 4, 7, 6]
CAPTIONS = ["a river", 'a dog, "running"', "über die Brücke 🌉", "NA", "", "two\nlines", "the river again"]
WAYS = [
    "by_pyarrow", "by_pyarrow_dataset", "by_pyarrow_index", "by_pandas", "by_duckdb", "by_datasets",
    "by_datasets_streaming",
]  # fmt: skip


def read_by_others(cache: Path, scratch: Path) -> dict[str, Any]:
    """What `foreign_reader.py` finds in a cache."""
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ},
        # no network, nothing outside of the folder; `datasets` asks whether torch is installed unless it is told
        "HF_HOME": str(scratch),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "USE_TORCH": "0",
        "OMP_NUM_THREADS": "1",
    }
    call = [sys.executable, str(Path(__file__).with_name("foreign_reader.py")), str(cache), str(scratch / "datasets")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, cwd=scratch, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("others")
    rows = [
        cache_row(index, frames, caption=caption)
        for index, (frames, caption) in enumerate(zip(FRAMES, CAPTIONS, strict=True))
    ]
    scratch = folder / "scratch"
    scratch.mkdir()
    return read_by_others(write_cache(folder / "cache", rows, shard_clips=3, group_rows=2), scratch)


# what `printf 0000 | sha256sum` and so on put first
IN_ORDER = [4, 5, 3, 2, 6, 1, 0]


def expected(clip: int) -> list[Any]:
    frames = FRAMES[clip]
    values = [40.0 * clip + frame for frame in range(frames)]
    return [
        f"{clip:04d}", CAPTIONS[clip], [frames, C, H, W], values, sum(values) * C * H * W, list(range(0, 2 * frames, 2))
    ]  # fmt: skip


def test_nothing_of_ours_was_there(found: dict[str, Any]):
    assert found["forbidden and loaded"] == []


@pytest.mark.parametrize("way", WAYS)
def test_every_way_reads_every_clip_in_order(found: dict[str, Any], way: str):
    assert found[way] == [expected(clip) for clip in IN_ORDER]


def test_questions_in_sql(found: dict[str, Any]):
    assert found["duckdb_answers"] == {
        "by caption": [f"{clip:04d}" for clip in IN_ORDER if clip in (0, 6)],
        "latents by caption": [expected(clip) for clip in IN_ORDER if clip in (0, 6)],
        "frames": {"clips": 7, "frames": sum(FRAMES)},
        "long": [f"{clip:04d}" for clip in IN_ORDER if FRAMES[clip] >= 6],
        "joined": 7,
        "rejected": 0,
    }


def test_a_cache_as_the_build_leaves_it(whole: Artifact, clips: Path, tmp_path: Path):
    found = read_by_others(whole.folder, tmp_path)
    with clips.open(newline="", encoding="utf-8") as handle:
        captions = {row["videoid"]: row["name"] for row in csv.DictReader(handle)}
    ids = sorted(captions, key=lambda video_id: hashlib.sha256(video_id.encode()).hexdigest())
    for way in WAYS:
        assert [row[:3] for row in found[way]] == [[clip_id, captions[clip_id], [20, 4, 8, 8]] for clip_id in ids]
        assert all(row[5] == list(range(0, 40, 2)) for row in found[way])
        assert found[way] == found["by_pyarrow"]
    hashes = {row["clip_id"]: (row["latents"], row["latents_sha256"]) for row in rows_of(whole.folder)}
    assert all(hashlib.sha256(data).hexdigest() == said for data, said in hashes.values())
    sums = {row[0]: row[4] for row in found["by_duckdb"]}
    assert sums == {name: float(np.frombuffer(data, np.float16).sum(dtype="f8")) for name, (data, _) in hashes.items()}
