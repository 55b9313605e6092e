"""Reads a latent cache as anybody could: with libraries that know nothing of this project.

Prints one JSON object: for each way of reading, what it found. test_other_readers.py runs it in a process of its own.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

FORBIDDEN = ("ray", "torch", "animateflow", "data_prep", "components", "infra", "flows", "evaluation")


class Forbid:
    """Lets none of these modules be imported, installed or not."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"{name} must not be needed", name=name)


sys.meta_path.insert(0, Forbid())  # type: ignore[arg-type]

import duckdb  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow.dataset as ds  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402


def clip(row: Mapping[str, Any]) -> list[Any]:
    """What is compared: id, caption, shape, and the first value of each frame with the sum of all values."""
    latents_FChw = np.frombuffer(row["latents"], dtype=np.float16).reshape(tuple(row["latents_shape"]))
    first = latents_FChw[:, 0, 0, 0].tolist()
    indices = [int(index) for index in row["source_indices"]]
    return [
        row["clip_id"],
        row["caption"],
        list(latents_FChw.shape),
        first,
        float(latents_FChw.sum(dtype="f8")),
        indices,
    ]


def clips(rows: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [clip(row) for row in rows]


def by_pyarrow(cache: Path, scratch: Path) -> Any:
    return clips(row for path in sorted(cache.glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist())


def by_pyarrow_dataset(cache: Path, scratch: Path) -> Any:
    shards = ds.dataset(sorted(str(path) for path in cache.glob("shard-*.parquet")), format="parquet")
    return clips(shards.to_table().to_pylist())


def by_pyarrow_index(cache: Path, scratch: Path) -> Any:
    """Each clip by its place: no file is read but the one that holds it."""
    shards = sorted(cache.glob("shard-*.parquet"))
    found = []
    for place in pq.read_table(cache / "index.parquet").to_pylist():
        row = pq.read_table(shards[place["shard"]]).slice(place["row"], 1).to_pylist()[0]
        assert (row["clip_id"], row["video_id"]) == (place["clip_id"], place["video_id"])
        assert row["latents_shape"][0] == place["frames"]
        found.append(clip(row))
    return found


def by_pandas(cache: Path, scratch: Path) -> Any:
    frames = [pd.read_parquet(path) for path in sorted(cache.glob("shard-*.parquet"))]
    return clips(pd.concat(frames).to_dict("records"))


def sql(query: str) -> list[dict[str, Any]]:
    found = duckdb.sql(query)
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def by_duckdb(cache: Path, scratch: Path) -> Any:
    return clips(sql(f"SELECT * FROM '{cache}/shard-*.parquet'"))


def duckdb_answers(cache: Path, scratch: Path) -> Any:
    """Questions that a person asks of a cache."""
    shards, index = f"'{cache}/shard-*.parquet'", f"'{cache}/index.parquet'"
    return {
        "by caption": [row["clip_id"] for row in sql(f"SELECT clip_id FROM {shards} WHERE caption LIKE '%river%'")],
        "latents by caption": clips(sql(f"SELECT * FROM {shards} WHERE caption LIKE '%river%'")),
        "frames": sql(f"SELECT count(*) AS clips, sum(frames) AS frames FROM {index}")[0],
        "long": [row["clip_id"] for row in sql(f"SELECT clip_id FROM {index} WHERE frames >= 6 ORDER BY shard, row")],
        "joined": sql(
            f"SELECT count(*) AS clips FROM {index} i JOIN {shards} s USING (clip_id) "
            "WHERE i.frames = s.latents_shape[1] AND octet_length(s.latents) = 2 * list_product(s.latents_shape)"
        )[0]["clips"],
        "rejected": sql(f"SELECT count(*) AS rows FROM '{cache}/rejected.parquet'")[0]["rows"],
    }


def load_dataset(cache: Path, scratch: Path, streaming: bool) -> Any:
    import datasets

    datasets.disable_progress_bars()
    files = sorted(str(path) for path in cache.glob("shard-*.parquet"))
    return datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(scratch), streaming=streaming
    )


def by_datasets(cache: Path, scratch: Path) -> Any:
    return clips(load_dataset(cache, scratch, streaming=False))


def by_datasets_streaming(cache: Path, scratch: Path) -> Any:
    return clips(load_dataset(cache, scratch, streaming=True))


WAYS: list[Callable[[Path, Path], Any]] = [
    by_pyarrow, by_pyarrow_dataset, by_pyarrow_index, by_pandas, by_duckdb, duckdb_answers, by_datasets,
    by_datasets_streaming,
]  # fmt: skip

if __name__ == "__main__":
    answer = {way.__name__: way(Path(sys.argv[1]), Path(sys.argv[2])) for way in WAYS}
    loaded = sorted(name for name in FORBIDDEN if name in sys.modules)
    for name in FORBIDDEN:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        loaded.append(name)
    print(json.dumps({**answer, "forbidden and loaded": loaded}))
