"""The end of a build: the manifest is checked, rejections are gathered, and the record gets its figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.checks import check_manifest
from data_prep.rows import Rejection, rejected_table
from data_prep.shards import commit, read_manifest, shard_paths, shard_rejections, write_table
from infra import logs
from infra.errors import WorkError

if TYPE_CHECKING:
    from data_prep.build import CacheConfig
    from infra.artifacts import Draft

log = logs.get_logger("data_prep")


def finish(config: CacheConfig, draft: Draft, rejections: list[Rejection], rows: int, vae: Path) -> None:
    """Writes `rejected.parquet` and the Data Docs' index, fills `draft.counts` and `draft.metrics`.

    Raises:
        WorkError: too large a share of the source's `rows` is rejected.
    """
    from data_prep.data_docs import write_index

    folder = draft.folder
    rejected = [*rejections, *(row for path in shard_paths(folder) for row in shard_rejections(path))]
    manifest = read_manifest(folder)
    failed = check_manifest(manifest, config, folder / "data_docs")
    if failed:
        _withdraw(folder, {row.clip_id for row in failed.values()})
        rejected += failed.values()
        manifest = read_manifest(folder)
    write_index(folder / "data_docs")
    write_table(folder / "rejected.parquet", rejected_table(rejected))
    reasons = Counter(row.reason for row in rejected)
    _judge(config, reasons, rows, folder / "rejected.parquet")
    for path in shard_paths(folder):
        if pq.read_metadata(path).num_rows == 0:
            path.unlink()  # all its clips are rejected, and listed
    frames = [shape[0] for shape in manifest["latents_shape"].to_pylist()]
    draft.counts = {
        "clips": len(manifest),
        "rejected": len(rejected),
        **{f"rejected.{reason}": count for reason, count in sorted(reasons.items())},
        "frames": sum(frames),
    }
    seconds = sum(count / fps for count, fps in zip(frames, manifest["fps"].to_pylist(), strict=True))
    draft.metrics = {
        "hours": round(seconds / 3600, 6),
        "bytes": sum(path.stat().st_size for path in shard_paths(folder)),
        **_vae_figures(vae),
    }


def _withdraw(folder: Path, clip_ids: set[str]) -> None:
    """Rewrites the shards that hold these clips without them."""
    for path in shard_paths(folder):
        table = pq.read_table(path)
        kept = table.filter(pc.invert(pc.is_in(table["clip_id"], pa.array(sorted(clip_ids), pa.string()))))
        if len(kept) < len(table):
            commit(path, kept, shard_rejections(path))


def _judge(config: CacheConfig, reasons: Counter[str], rows: int, table: Path) -> None:
    count = reasons.total()
    text = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    if count > config.rejected_share_max * rows:
        raise WorkError(
            f"{count} of {rows} rows are rejected ({text}).",
            f"The config allows {config.rejected_share_max:.0%}.",
            f"Read the reasons in {table}, mend the source, or raise rejected_share_max.",
        )
    if count:
        log.warning("%d of %d rows are rejected (%s); each with its reason in rejected.parquet.", count, rows, text)
    if count == rows:
        log.warning("Nothing is cached: not one row of the source can be used.")


def _vae_figures(folder: Path) -> dict[str, object]:
    from components.base_model import vae_sha256
    from data_prep.encode import load_vae

    vae = load_vae(folder, "cpu")
    return {"vae_sha256": vae_sha256(vae), "scaling_factor": float(vae.config.scaling_factor)}
