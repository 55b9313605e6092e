"""A build in a process of its own, to be killed: `python -m tests.data_prep.builder.building JSON`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_prep.cache.shards import shard_paths


def start_build(
    config: dict[str, Any], source: Path, vae: Path, out: Path, log: Path, **options: Any
) -> subprocess.Popen[bytes]:
    """Starts the build as the leader of its own process group; all it says goes to `log`."""
    told = {"config": config, "source": str(source), "vae": str(vae), "out": str(out), **options}
    command = [sys.executable, "-m", "tests.data_prep.builder.building", json.dumps(told)]
    with log.open("ab") as handle:
        return subprocess.Popen(
            command, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True, env=dict(os.environ)
        )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of a cache with their latents, in the order of its shards."""
    return [row for path in shard_paths(folder) for row in pq.read_table(path).to_pylist()]


def main() -> None:
    from data_prep.builder.build import build_latent_cache
    from data_prep.config import CacheConfig
    from infra.logs import setup_logging

    setup_logging(verbose=False)
    told = json.loads(sys.argv[1])
    build_latent_cache(
        CacheConfig.model_validate(told["config"]), told["source"], None, Path(told["vae"]), Path(told["out"])
    )


if __name__ == "__main__":
    main()
