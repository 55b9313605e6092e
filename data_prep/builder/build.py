"""Videos to a latent cache, or a cache to its next version, on Ray Data. If a build is stopped, the same call resumes
with the missing shards; if no shard is missing, Ray is not started."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.config import CacheConfig
from data_prep.download.config import DownloadConfig
from infra import logs
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact, Draft
from infra.errors import UserError

if TYPE_CHECKING:
    from data_prep.encode.tasks import ShardTask
    from data_prep.sources.sources import SourceRow

KIND = "latent-cache"

log = logs.get_logger("data_prep")


def build_latent_cache(
    config: CacheConfig,
    source: str | Path,
    videos: str | Path | None,
    vae: Path,
    out: Path,
    prune: bool = False,
    download: bool = False,
) -> Artifact:
    """The latent cache of a source's videos, encoded by the VAE in `vae` (its folder, or a pipeline's).

    Every row of the source is either cached or listed in `rejected.parquet` with its stage and reason. A cache
    already in `out` becomes its next version: only new or changed videos are encoded, or all of them if the encoding
    changed. Clips whose row or video was removed stay, unless `prune`. With `download`, missing videos are downloaded
    first.

    Raises:
        UserError: the source, the folder of videos or the VAE is not there or not of its kind; `out` holds something
            else; clips whose videos no longer exist would have to be encoded again.
        WorkError: more than `rejected_share_max` of the rows are rejected, or encoding stopped.
    """
    from data_prep.builder.plan import encoding_of, state_of
    from data_prep.encode.encode import text_folder, vae_folder
    from data_prep.sources.sources import read_source, videos_root
    from infra.hashing import sha256_path

    weights = vae_folder(vae)
    text = text_folder(vae) if config.caption_embeddings else None
    rows = read_source(source, videos)
    if download:
        rows = download_missing(rows, source, videos, config.download)
    encoding = encoding_of(config, sha256_path(weights), sha256_path(text / "text_encoder") if text else None)
    finished = _finished(out)
    state = state_of(rows, config, encoding, prune)
    if finished is not None and finished.metrics["state"] == state:
        log.info("The latent cache %s is up to date: %d clips.", out, finished.counts["clips"])
        return finished
    with artifacts.revision(out, KIND, config) as draft:
        draft.inputs["vae"] = artifacts.Input("vae", weights.name, encoding["vae"])
        work = Build(config, rows, encoding, weights, text, draft, finished, prune)
        work.run()
        draft.metrics["videos_root"] = videos_root(source, videos)
        draft.metrics["state"] = state
        draft.inputs["videos"] = artifacts.Input("videos", Path(source).name, draft.metrics["rows_sha256"])
    return artifacts.load(out, KIND)


def _finished(out: Path) -> Artifact | None:
    """The cache that is there already.

    Raises:
        UserError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    finished = artifacts.load(out, KIND)
    if "encoding" not in finished.metrics:
        raise UserError(
            f"{out} holds a latent cache of an older format.",
            "Its shards do not record their inputs, so none of them can be reused.",
            f"Write to another --out, or remove {out} to build it again.",
        )
    return finished


@dataclass(frozen=True)
class Build:
    """One version of a cache being made."""

    config: CacheConfig
    rows: list[SourceRow]
    encoding: dict[str, Any]
    vae: Path
    text: Path | None
    draft: Draft
    finished: Artifact | None
    prune: bool

    def run(self) -> None:
        from data_prep.builder.finish import finish
        from data_prep.builder.plan import missing_shards, plan, refuse_reencoding_without_videos, select_videos

        config, folder = self.config, self.draft.folder
        before = self.finished.folder if self.finished else None
        selected = select_videos(self.rows, config, folder / "data_docs", self.finished, self.prune)
        refuse_reencoding_without_videos(selected, self.encoding, self.finished)
        tasks = plan(config, selected.videos, self.encoding, folder, before)
        missing = missing_shards(config, tasks, folder, before)
        self._announce(tasks, missing)
        pace = self._encode(tasks, missing)
        finish(config, self.draft, before, tasks, selected)
        self.draft.metrics["encoding"] = self.encoding
        self.draft.metrics |= pace

    def _announce(self, tasks: list[ShardTask], missing: list[ShardTask]) -> None:
        from data_prep.builder.plan import changed_fields

        if self.finished is not None and self.finished.metrics["encoding"] != self.encoding:
            what = changed_fields(self.finished.metrics["encoding"], self.encoding)
            log.info("Every clip is encoded again: %s. The old version stays until the new one is complete.", what)
        elif len(missing) < len(tasks):
            log.info("%d of %d shards already exist.", len(tasks) - len(missing), len(tasks))

    def _encode(self, tasks: list[ShardTask], missing: list[ShardTask]) -> dict[str, Any]:
        """Makes the shards, and says how long it took until the first actor began, and how fast it went from there."""
        from data_prep.encode.ray_pipeline import encode_shards

        started = time.time()
        shards = []
        videos, left = (sum(len(task.videos) for task in some) for some in (tasks, missing))
        with logs.progress(videos, "videos to latents", "video", initial=videos - left) as bar:
            for place, shard in enumerate(encode_shards(missing, self.config, self.vae, self.text), 1):
                bar.update(shard["videos"])
                shards.append(shard)
                log.info(_shard_line(place, len(missing), shard))
        began = min((shard["began"] for shard in shards), default=started)
        seconds = max((shard["ended"] for shard in shards), default=started) - began
        frames = sum(shard["frames"] for shard in shards)
        return {
            "start_seconds": round(began - started, 3),
            "encode_seconds": round(seconds, 3),
            "decode_cpu_seconds": round(sum(shard["decode_cpu_seconds"] for shard in shards), 3),
            "frames_per_second": round(frames / seconds, 3) if seconds else 0.0,
            **(shards[0]["vae"] if shards else self._vae_figures()),
        }

    def _vae_figures(self) -> dict[str, Any]:
        """For a build in which no actor ran."""
        from data_prep.encode.encode import load_vae, vae_figures

        if self.finished is not None and self.finished.metrics["encoding"]["vae"] == self.encoding["vae"]:
            return {name: self.finished.metrics[name] for name in ("vae_sha256", "scaling_factor")}
        return vae_figures(load_vae(self.vae, "cpu"))


def download_missing(
    rows: list[SourceRow], source: str | Path, videos: str | Path | None, config: DownloadConfig
) -> list[SourceRow]:
    """The rows after missing videos have been downloaded; a failed download is the row's problem."""
    from data_prep.download.download import Request, download
    from data_prep.problems import Problem
    from data_prep.sources.sources import read_source

    wanted = [Request(row.url, row.target) for row in rows if row.target is not None]
    if not wanted:
        return rows
    failures = {path: failure for path, failure in download(wanted, config).items() if failure is not None}
    again = read_source(source, videos)
    return [
        replace(row, problem=Problem(failure.reason, failure.message))
        if row.file is None and row.target is not None and (failure := failures.get(row.target))
        else row
        for row in again
    ]


def _shard_line(place: int, of: int, shard: dict[str, Any]) -> str:
    reasons = Counter(json.loads(shard["reasons"]))
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    kept = shard["clips"] - shard["encoded"]
    return (
        f"Shard {place}/{of} {shard['shard']}: {shard['encoded']} clips encoded, {shard['frames']} frames in "
        f"{shard['ended'] - shard['began']:.1f} s"
        + (f"; {kept} kept" if kept else "")
        + (f"; rejected: {rejected}" if rejected else "")
    )
