"""A CLIP model of open_clip as encoder of images and texts. N images, H W pixels, D embedding width."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from components.clip.config import LOCAL_PREFIX, ClipModel
from components.files.network import hub_reachable
from infra.errors import UserError
from infra.runtime import pick_device
from infra.video import UInt8

Float = NDArray[np.float32]

HUB_FILE_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
CACHED_TEXTS = 4096  # a benchmark encodes the same prompts many times


class ClipEncoder:
    """A loaded CLIP model. `sha256` is the hash of its weights."""

    def __init__(self, config: ClipModel, device: str = "auto") -> None:
        """
        Raises:
            UserError: unknown name or tag, no weights, or weights to download and no network.
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
        """For tables: `ViT-B-32-quickgelu/openai`, or the name of the local folder."""
        if self.config.name.startswith(LOCAL_PREFIX):
            return Path(self.config.name.removeprefix(LOCAL_PREFIX)).name
        return f"{self.config.name}/{self.config.pretrained}"

    @torch.inference_mode()
    def encode_images(self, images_NHWC: UInt8) -> Float:
        """(N, D) normalised embeddings.

        Each image goes through the model's own preprocessing (resize, crop, normalise), which takes a small part of the
        time of the encoder.
        """
        size = self.config.batch_size
        pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in images_NHWC])
        batches = [pixels[first : first + size].to(self.device) for first in range(0, len(pixels), size)]
        return _normalised(torch.cat([self.model.encode_image(batch) for batch in batches]))

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> Float:
        """(D,) normalised embedding of the prompt, cut to the tokenizer's context length, see `truncates`."""
        if prompt not in self._texts:
            if len(self._texts) == CACHED_TEXTS:
                self._texts.clear()
            tokens = self._tokenizer([prompt]).to(self.device)
            self._texts[prompt] = _normalised(self.model.encode_text(tokens))[0]
        return self._texts[prompt]

    def truncates(self, prompt: str) -> bool:
        """Whether the prompt is longer than the tokenizer's context length, so that its end is not encoded."""
        length = self.model.context_length
        longer = self._tokenizer([prompt], context_length=length + 1)[:, :length]
        return not torch.equal(longer, self._tokenizer([prompt], context_length=length))


def _load(config: ClipModel) -> tuple[torch.nn.Module, Any, Any]:
    import open_clip

    _check_available(config)
    try:
        with _quiet():
            tag = None if config.name.startswith(LOCAL_PREFIX) else config.pretrained
            model, preprocess = open_clip.create_model_from_pretrained(config.name, tag)
            return model, preprocess, open_clip.get_tokenizer(config.name)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise UserError(
            f"The CLIP model {config.name} could not be loaded: {str(error).splitlines()[0]}",
            "Its files are damaged or do not fit its config.",
            "Download or save it again in open_clip's format.",
        ) from None


def _check_available(config: ClipModel) -> None:
    """Fails within seconds, where open_clip would retry a download for a minute and then list 140 names.

    Raises:
        UserError: see `ClipEncoder`.
    """
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    if config.name.startswith(LOCAL_PREFIX):
        config.as_input()
        return
    if config.name not in open_clip.list_models():
        near = (
            ", ".join(difflib.get_close_matches(config.name, open_clip.list_models(), n=4, cutoff=0.4))
            or "ViT-B-32-quickgelu"
        )
        raise UserError(f"open_clip has no model {config.name!r}.", f"Similar names: {near}.", "Correct clip.name.")
    if config.pretrained and Path(config.pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if config.pretrained not in tags:
        raise UserError(
            f"open_clip has no weights {config.pretrained!r} for {config.name}.",
            f"It has {', '.join(tags) or 'none'}.",
            "Correct clip.pretrained, or give a weight file.",
        )
    _check_activation(config)
    repository = open_clip.get_pretrained_cfg(config.name, config.pretrained).get("hf_hub", "").strip("/")
    cached = any(isinstance(try_to_load_from_cache(repository, file), str) for file in HUB_FILE_NAMES if repository)
    if not cached and not hub_reachable():
        raise UserError(
            f"The weights of CLIP {config.name} ({config.pretrained}) are not on this machine, and there is no "
            "network.",
            "",
            "Download them where there is network, and set clip.name=local-dir:FOLDER.",
        )


def _check_activation(config: ClipModel) -> None:
    """
    Raises:
        UserError: the weights were trained with another activation than the model has, which gives wrong scores.
    """
    import open_clip

    trained = bool(open_clip.get_pretrained_cfg(config.name, config.pretrained).get("quick_gelu"))
    has = bool((open_clip.get_model_config(config.name) or {}).get("quick_gelu"))
    if trained == has:
        return
    plain = config.name.removesuffix("-quickgelu")
    other = f"{plain}-quickgelu" if trained else plain
    raise UserError(
        f"The weights {config.pretrained!r} were trained with {'QuickGELU' if trained else 'GELU'}, and "
        f"{config.name} has {'QuickGELU' if has else 'GELU'}.",
        "Its scores would be wrong by a few points, without an error.",
        f"Set clip.name={other}.",
    )


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
    """Silences open_clip's report of its steps through the root logger; what it warns of comes through."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.INFO))
    try:
        yield
    finally:
        logging.disable(level)
