"""Where a recipe's videos come from: the user's own files, or clips that the pocket world draws."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.artifacts import artifacts
from infra.config import Config
from infra.errors import UserError


@dataclass(frozen=True)
class Footage:
    """The source and the folder of videos that `build_latent_cache` reads."""

    source: str | Path
    videos: str | Path | None


class OwnVideos(Config):
    """The user's videos and captions."""

    source: str | None = None
    """A WebVid CSV, a JSONL or Parquet table, a folder of videos with captions beside them, or a WebDataset .tar: as a
    path or as an fsspec address."""
    videos: str | None = None
    """The folder that the table's rows refer to; not needed where `source` is a folder."""

    def provide(self, folder: Path) -> Footage:
        """The user's files; nothing is written to `folder`.

        Raises:
            UserError: the recipe names no videos.
        """
        if self.source is None:
            raise UserError(
                "This recipe brings no videos.",
                "It trains on your own.",
                "Name them: --set footage.source=videos.csv --set footage.videos=FOLDER, or build the cache first with "
                "`animateflow cache build --source ... --out DIR` and pass --cache DIR.",
            )
        return Footage(self.source, self.videos)


class DrawnClips(Config):
    """Captioned clips drawn by `infra.pocket.clips`, as H.264 files with a CSV in WebVid's columns."""

    count: int
    """Clips to draw."""
    seed: int
    """Clip i depends on (seed, i) only."""
    domain: Literal["clean", "stock"] = "stock"
    """`stock` has a watermark, blur and compression, as stock footage has."""

    def provide(self, folder: Path) -> Footage:
        """Draws the clips into the artifact `folder`, unless it exists."""
        from infra.pocket.clips import write_clips

        if artifacts.find(folder, "pocket-clips", self, {}) is None:
            with artifacts.draft(folder, "pocket-clips", self, {}) as draft:
                write_clips(draft.folder, self.count, self.seed, domain=self.domain)
                draft.counts["clips"] = self.count
        return Footage(folder / "clips.csv", folder / "videos")
