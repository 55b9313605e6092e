"""A CLIP model of open_clip, loaded. N images, H W pixels, D embedding."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from components.clip.config import LOCAL, ClipModel
from infra.errors import UserError
from infra.runtime import pick_device
from infra.video import UInt8

Float = NDArray[np.float32]

PROBE_SECONDS = 3.0
CACHED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TEXTS_KEPT = 4096  # embeddings of prompts, which a benchmark asks for again and again


class ClipEncoder:
    """A loaded CLIP model. `sha256` is over the weights as they were loaded, wherever they came from."""

    def __init__(self, config: ClipModel, device: str = "auto") -> None:
        """
        Raises:
            UserError: unknown name or tag, no weights, or weights that would have to be downloaded without network.
        """
        self.config = config
        self.device = pick_device(device)
        self.model: Any
        self.model, self._preprocess, self._tokenizer = _load(config)
        self.model.eval().requires_grad_(False).to(self.device)
        self.sha256 = _weights_sha256(self.model)
        self._texts: dict[str, Float] = {}

    @property
    def name(self) -> str:
        """For people and tables: `ViT-B-32/openai`, or the name of the local folder."""
        if self.config.name.startswith(LOCAL):
            return Path(self.config.name.removeprefix(LOCAL)).name
        return f"{self.config.name}/{self.config.pretrained}"

    @torch.inference_mode()
    def images(self, images_NHWC: UInt8) -> Float:
        """(N, D) normalised embeddings.

        Each image goes through the model's own preprocessing (resize, crop, normalise): it costs a small part of the
        encoder, and a shortcut would score another picture.
        """
        size = self.config.batch_size
        pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in images_NHWC])
        batches = [pixels[first : first + size].to(self.device) for first in range(0, len(pixels), size)]
        return _normalised(torch.cat([self.model.encode_image(batch) for batch in batches]))

    @torch.inference_mode()
    def text(self, prompt: str) -> Float:
        """(D,) normalised embedding of as much of the prompt as the tokenizer takes, see `truncates`."""
        if prompt not in self._texts:
            if len(self._texts) == TEXTS_KEPT:
                self._texts.clear()
            tokens = self._tokenizer([prompt]).to(self.device)
            self._texts[prompt] = _normalised(self.model.encode_text(tokens))[0]
        return self._texts[prompt]

    def truncates(self, prompt: str) -> bool:
        """Whether the prompt is longer than the tokenizer's context, so that its end is not scored."""
        length = self.model.context_length
        longer = self._tokenizer([prompt], context_length=length + 1)[:, :length]
        return not torch.equal(longer, self._tokenizer([prompt], context_length=length))


def _load(config: ClipModel) -> tuple[torch.nn.Module, Any, Any]:
    import open_clip

    _check_known(config)
    try:
        with _quiet():
            model, preprocess = open_clip.create_model_from_pretrained(config.name, config.pretrained)
            return model, preprocess, open_clip.get_tokenizer(config.name)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise UserError(
            f"The CLIP model {config.name} could not be loaded: {str(error).splitlines()[0]}",
            "Its files are damaged, or do not fit its config.",
            "Download or save it again in open_clip's format.",
        ) from None


def _check_known(config: ClipModel) -> None:
    """Fails within seconds, where open_clip would retry a download for a minute and then list 140 names."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    if config.name.startswith(LOCAL):
        config.as_input()
        return
    if config.name not in open_clip.list_models():
        near = ", ".join(difflib.get_close_matches(config.name, open_clip.list_models(), n=4, cutoff=0.4)) or "ViT-B-32"
        raise UserError(f"open_clip has no model {config.name!r}.", f"Names near it: {near}.", "Correct clip.name.")
    if config.pretrained and Path(config.pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if config.pretrained not in tags:
        raise UserError(
            f"CLIP {config.name} has no weights {config.pretrained!r}.",
            f"It has {', '.join(tags) or 'none'}.",
            "Correct clip.pretrained, or give a weight file.",
        )
    repository = open_clip.get_pretrained_cfg(config.name, config.pretrained).get("hf_hub", "").strip("/")
    cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in CACHED if repository)
    if not cached and not _online():
        raise UserError(
            f"The weights of CLIP {config.name} ({config.pretrained}) are not on this machine; there is no network.",
            "",
            "Download them where there is network and set clip.name=local-dir:FOLDER.",
        )


def _online() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return False
    try:
        with urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False


def _weights_sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _normalised(embeddings_ND: torch.Tensor) -> Float:
    return np.asarray(torch.nn.functional.normalize(embeddings_ND.float(), dim=-1).cpu().numpy())


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip reports every step of its loading, and its failures, through the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
