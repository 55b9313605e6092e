"""Where a recipe's videos come from: a person's own files, or clips drawn by the pocket world."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.artifacts import artifacts
from infra.config import Config
from infra.errors import UserError


@dataclass(frozen=True)
class Footage:
    """What `data_prep.builder.build.build_latent_cache` reads."""

    source: str | Path
    videos: str | Path | None


class OwnVideos(Config):
    """Videos and captions of the user."""

    source: str | None = None
    """A WebVid CSV, a JSONL or Parquet table, a folder of videos with captions beside them, or a WebDataset .tar: as a
    path or as an fsspec address."""
    videos: str | None = None
    """The folder that the table's rows refer to; not needed where `source` is a folder."""

    def provide(self, folder: Path) -> Footage:
        """The user's files as they are; `folder` is not used.

        Raises:
            UserError: the recipe names no videos.
        """
        if self.source is None:
            raise UserError(
                "This recipe has no videos of its own.",
                "It trains on yours.",
                "Name them: --set footage.source=videos.csv --set footage.videos=FOLDER, or build the cache first with "
                "`animateflow cache build --source ... --out DIR` and pass --cache DIR.",
            )
        return Footage(self.source, self.videos)


class DrawnClips(Config):
    """Captioned clips drawn by `infra.pocket.clips`, as H.264 files with a CSV in WebVid's columns."""

    count: int
    """Clips to draw."""
    seed: int
    """Clip i depends on (seed, i) alone."""
    domain: Literal["clean", "stock"] = "stock"
    """`stock` has a watermark, blur and compression, as stock footage has."""

    def provide(self, folder: Path) -> Footage:
        """Draws the clips into the artifact `folder`, unless they are there."""
        from infra.pocket.clips import write_clips

        if artifacts.find(folder, "pocket-clips", self, {}) is None:
            with artifacts.draft(folder, "pocket-clips", self, {}) as draft:
                write_clips(draft.folder, self.count, self.seed, domain=self.domain)
                draft.counts["clips"] = self.count
        return Footage(folder / "clips.csv", folder / "videos")
