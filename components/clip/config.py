"""Which CLIP model looks at pictures and texts."""

from __future__ import annotations

from pathlib import Path

from infra.artifacts.artifacts import Input
from infra.config import Config, execution
from infra.errors import UserError
from infra.hashing import sha256_json, sha256_path

LOCAL = "local-dir:"


class ClipModel(Config):
    """An open_clip model."""

    name: str = "ViT-B-32"
    """An open_clip name (`ViT-B-32`), or `local-dir:PATH` for a folder with open_clip_config.json and weights."""
    pretrained: str | None = "openai"
    """An open_clip tag or a weight file for a name; of no effect for a `local-dir:`."""
    batch_size: int = execution(64, ge=1)
    """Images encoded at a time."""

    def as_input(self) -> Input:
        """What identifies the encoder: the bytes of a local folder or file, else name and tag.

        Raises:
            UserError: a local folder that is not there.
        """
        if self.name.startswith(LOCAL):
            folder = Path(self.name.removeprefix(LOCAL))
            if not (folder / "open_clip_config.json").is_file():
                raise UserError(
                    f"The CLIP folder {folder} has no open_clip_config.json.",
                    "A local CLIP model is a folder in open_clip's format: that file and *.safetensors.",
                    "Check clip.name.",
                )
            return Input("clip-model", folder.name, sha256_path(folder))
        if self.pretrained and Path(self.pretrained).is_file():
            weights = Path(self.pretrained)
            return Input("clip-model", self.name, sha256_json([self.name, sha256_path(weights)]))
        return Input("clip-model", self.name, sha256_json([self.name, self.pretrained]))
