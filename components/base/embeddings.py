"""Textual-inversion embeddings: words of a prompt that stand for learnt vectors (Gal et al. 2022).

Known forms: A1111's .safetensors (`emb_params`) and .pt (`string_to_param`), and diffusers' one tensor under the
token's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken

from components.files.weight_files import read_header_of, read_tensors
from infra.errors import UserError, listed
from infra.quiet import quiet

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KIND = "textual-inversion"
IDS = r"string_to_token\..*"  # in A1111's own table


def add_embedding(pipeline: StableDiffusionPipeline, path: Path, token: str | None = None) -> str:
    """Teaches tokenizer and text encoder the embedding; returns the word that stands for it in prompts.

    The word is `token`, else the file's own where diffusers wrote one, else the file's name as UIs have it.

    Raises:
        UserError: not an embedding, of another text encoder's width, or a word that the tokenizer knows already.
    """
    read = read_tensors(read_header_of(path, KIND, beside=IDS))
    tensors = {name: tensor for name, tensor in read.items() if not re.fullmatch(IDS, name)}
    if len(tensors) != 1:
        raise UserError(
            f"{path} holds more than one tensor: {listed(sorted(tensors))}.",
            "An embedding is one; what the others are for is not known.",
            "Download it again.",
        )
    name = next(iter(tensors))
    if not tensors[name].numel():
        raise UserError(
            f"{path} holds no vector; an embedding has one vector or more.", "It is empty.", "Get it again."
        )
    vectors = tensors[name].reshape(-1, tensors[name].shape[-1]).float()
    width = pipeline.text_encoder.config.hidden_size
    if vectors.shape[1] != width:
        family = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2", 1280: "SDXL"}.get(vectors.shape[1])
        raise UserError(
            f"{path} holds vectors of {vectors.shape[1]} numbers, and the text encoder's have {width}.",
            f"It was trained for {family}." if family else "It was trained with another text encoder.",
            "Pass an embedding made for this base model.",
        )
    own = name if name.startswith("<") else path.stem
    word = token or own
    if {word, f"{word}</w>"} & pipeline.tokenizer.get_vocab().keys():
        raise UserError(
            f"The word {word!r} of {path} is one that the tokenizer knows already.",
            "Prompts could not tell the two apart.",
            f"Give it another: {path}:my-word.",
        )
    # diffusers' own loader adds words as plain text, which CLIP's tokenizer lowers: of a word with a capital letter it
    # then finds the first vector only.
    words = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
    with quiet(), torch.no_grad():
        pipeline.tokenizer.add_tokens([AddedToken(each, normalized=False) for each in words])
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer), mean_resizing=False)
        table = pipeline.text_encoder.get_input_embeddings().weight
        table[pipeline.tokenizer.convert_tokens_to_ids(words)] = vectors.to(table)
    return word
