"""Which CLIP model encodes images and texts."""

from __future__ import annotations

from pathlib import Path

from infra.artifacts.artifacts import Input
from infra.config import Config, execution
from infra.errors import UserError
from infra.hashing import sha256_json, sha256_path

LOCAL_PREFIX = "local-dir:"


class ClipModel(Config):
    """An open_clip model."""

    name: str = "ViT-B-32-quickgelu"
    """A model name of open_clip (OpenAI's weights belong to the `-quickgelu` variants), or `local-dir:PATH` for a
    folder with open_clip_config.json and weights."""
    pretrained: str | None = "openai"
    """A tag of open_clip, or a weight file; not used with `local-dir:`."""
    batch_size: int = execution(64, ge=1)
    """Images per batch."""

    def as_input(self) -> Input:
        """The model as an artifact's input: identified by the hash of its local folder or file, else by name and tag.

        Raises:
            UserError: the local folder does not exist or is not in open_clip's format.
        """
        if self.name.startswith(LOCAL_PREFIX):
            folder = Path(self.name.removeprefix(LOCAL_PREFIX))
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
