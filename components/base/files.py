"""A base model's files against its configs, by their headers alone, before anything is loaded.

diffusers loads what it finds, says in a log line what it did not use, and leaves a tensor that is missing without
memory. Here every tensor of UNet, VAE and text encoder is accounted for first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.files.weight_files import Header, check_floats, read_header
from infra.errors import UserError, listed
from infra.quiet import quiet

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
# What published checkpoints carry in the text encoder beside the weights that Stable Diffusion uses.
REWRITTEN = (".attn_1.", ".loss.")  # the converter copies the first; the second is of the VAE's training
UNUSED = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")


def check_single_file(header: Header, reference: Path) -> None:
    """
    Raises:
        UserError: a part (UNet, VAE, text encoder) is not in the file, or its tensors are not those of the reference's
            model; the message lists them.
    """
    from diffusers.loaders import single_file_utils as theirs

    convert: dict[str, Callable[..., Mapping[str, Tensor | None]]] = {
        "unet": theirs.convert_ldm_unet_checkpoint,
        "vae": theirs.convert_ldm_vae_checkpoint,
        "text_encoder": lambda given, config: theirs.convert_ldm_clip_checkpoint(given),
    }
    advice = (
        "Download it again, or pass the diffusers folder of the model that it was fine-tuned from as its reference."
    )
    for part, prefix in PREFIXES.items():
        shapes = {name: shape for name, shape in header.shapes.items() if name.startswith(prefix)}
        if not shapes:
            raise UserError(
                f"{header.path} holds no {part.replace('_', ' ')}.",
                "It was published without one, to be used with the base model's own.",
                "Take the full version of the file, or build a diffusers folder from it.",
            )
        check_floats(header, (name for name in shapes if not name.endswith(UNUSED)))
        config = config_of(reference, part)
        with quiet(), torch.device("meta"):
            given = {name: torch.empty(shape) for name, shape in shapes.items()}
            try:
                found = convert[part](given, config)
            except (KeyError, IndexError, AttributeError, RuntimeError, ValueError) as error:
                raise _does_not_fit(header.path, reference, f"its {part} cannot be mapped: {error}", advice) from None
        used = {id(tensor) for tensor in found.values()}
        strange = [
            f"{name.removeprefix(prefix)} is unknown"
            for name, tensor in given.items()
            if id(tensor) not in used and not name.endswith(UNUSED) and not any(part in name for part in REWRITTEN)
        ]
        if strange:
            raise _does_not_fit(header.path, reference, listed(strange), advice)
        if wrong := _differences(
            part, config, {name: tuple(each.shape) for name, each in found.items() if each is not None}
        ):
            raise _does_not_fit(header.path, reference, listed(wrong), advice)


def check_folder(folder: Path) -> None:
    """
    Raises:
        UserError: a weight file of a diffusers folder is damaged, or its tensors are not those of its config.
    """
    for part in PREFIXES:
        files = sorted((folder / part).glob("*.safetensors"))
        variants = [file for file in files if ".fp16" in file.name]
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files if len(variants) == len(files) else [file for file in files if file not in variants]:
            if not file.name.endswith(".non_ema.safetensors"):
                shapes |= read_header(file).shapes
        if files and (folder / part / "config.json").is_file():
            wrong = _differences(part, config_of(folder, part), shapes)
            if wrong:
                raise _does_not_fit(folder, folder / part / "config.json", listed(wrong), "Download it again.")


def config_of(folder: Path, part: str) -> dict[str, Any]:
    """The config.json of a diffusers folder's part.

    Raises:
        UserError: it cannot be read.
    """
    file = folder / part / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "It gives the part's sizes.",
            "Pass the diffusers folder of a base model; if this is one, download it again.",
        ) from None


def _differences(part: str, config: dict[str, Any], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unknown or of another size."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with quiet(), torch.device("meta"):
        model = {
            "unet": lambda: UNet2DConditionModel.from_config(config),
            "vae": lambda: AutoencoderKL.from_config(config),
            "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**config)),
        }[part]()
    own = {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name.removeprefix("text_model."): shape for name, shape in found.items() if not name.endswith(UNUSED)}
    wrong = [f"{part}.{name} is missing" for name in own if name not in given and not name.endswith(UNUSED)]
    wrong += [f"{part}.{name} is unknown" for name in given if name not in own]
    return wrong + [
        f"{part}.{name} is {shape}, not {own[name]}"
        for name, shape in given.items()
        if name in own and shape != own[name] and not (part == "vae" and _is_old_attention(name, shape, own[name]))
    ]


def _is_old_attention(name: str, shape: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """VAEs of old folders have 1x1 convolutions where attention is linear now; diffusers converts them."""
    return ".attentions." in name and shape[:2] == own and shape[2:] in ((1,), (1, 1))


def _does_not_fit(path: Path, reference: Path, what: str, advice: str) -> UserError:
    return UserError(
        f"{path} does not hold the model that {reference} describes: {what}.",
        "It is damaged or incomplete, or was fine-tuned from a model of other sizes.",
        advice,
    )
