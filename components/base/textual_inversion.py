"""Textual-inversion embeddings: words for prompts that stand for learned vectors (Gal et al. 2022).

Formats: A1111's .safetensors (`emb_params`) and .pt (`string_to_param`), and diffusers' one tensor named after the
token.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken
from torch import Tensor

from components.files.weights import read_header_of_kind, read_tensors
from infra.errors import UserError, listed
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KIND = "textual-inversion"
TOKEN_IDS = r"string_to_token\..*"
"""Names of tensors in A1111's .pt that are token ids, not weights."""
TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2", 1280: "SDXL"}


def add_textual_inversion(pipeline: StableDiffusionPipeline, path: Path, token: str | None = None) -> str:
    """Adds an embedding to tokenizer and text encoder; returns the word that stands for it in prompts.

    The word is `token`; without one that in a file of diffusers, else the name of the file as in A1111.

    Raises:
        UserError: not an embedding, one for a text encoder of another width, or a word that the tokenizer has already.
    """
    name, vectors = _read(path)
    width = pipeline.text_encoder.config.hidden_size
    if vectors.shape[1] != width:
        family = TEXT_WIDTHS.get(vectors.shape[1])
        raise UserError(
            f"{path} holds vectors of {vectors.shape[1]} numbers, and those of the text encoder have {width}.",
            f"It was trained for {family}." if family else "It was trained with another text encoder.",
            "Pass an embedding made for this base model.",
        )
    word = token or (name if name.startswith("<") else path.stem)
    if {word, f"{word}</w>"} & pipeline.tokenizer.get_vocab().keys():
        raise UserError(
            f"The word {word!r} of {path} is in the tokenizer already.",
            "In a prompt the two could not be told apart.",
            f"Choose another word: {path}:my-word.",
        )
    # diffusers' loader adds words in plain text, which CLIP's tokenizer converts to lower case, so that only the first
    # vector of a word with a capital letter is used.
    words = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
    with quiet(), torch.no_grad():
        pipeline.tokenizer.add_tokens([AddedToken(each, normalized=False) for each in words])
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
        table = pipeline.text_encoder.get_input_embeddings().weight
        table[pipeline.tokenizer.convert_tokens_to_ids(words)] = vectors.to(table)
    return word


def _read(path: Path) -> tuple[str, Tensor]:
    """The name of the embedding's tensor, and its vectors in float32, (number, width)."""
    tensors = read_tensors(read_header_of_kind(path, KIND, not_weights=TOKEN_IDS))
    tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(TOKEN_IDS, name)}
    if len(tensors) != 1:
        raise UserError(
            f"{path} holds more than one tensor: {listed(sorted(tensors))}.",
            "An embedding is one tensor. The use of the others is not known.",
            "Download it again.",
        )
    [(name, tensor)] = tensors.items()
    if not tensor.numel():
        raise UserError(
            f"{path} holds no vector; an embedding has one vector or more.", "It is empty.", "Download it again."
        )
    return name, tensor.reshape(-1, tensor.shape[-1]).float()
