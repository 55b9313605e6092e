"""Checks that the tensors of a base model are those of its configs, before anything is loaded; only headers are read.

diffusers only logs the tensors that it does not use, and leaves missing ones on the meta device. Here a missing or
unknown tensor of UNet, VAE or text encoder is an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.files.weights import Header, check_floats, read_header
from infra.errors import UserError, listed
from infra.quiet import quiet

Shapes = Mapping[str, tuple[int, ...]]

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
"""Part of a pipeline to the prefix of its keys in a single-file checkpoint."""
# Keys that published checkpoints have and Stable Diffusion does not use.
COPIED_OR_OF_TRAINING = (".attn_1.", ".loss.")  # the first are copied by the converter, the second train the VAE
UNUSED = ("position_ids", "logit_scale", "text_projection", "text_projection.weight")


def check_single_file(header: Header, reference: Path) -> None:
    """Checks a single-file checkpoint against the configs of a diffusers folder.

    Raises:
        UserError: a part (UNet, VAE, text encoder) is not in the file, or its tensors are not those of its config; the
            message lists them.
    """
    for part, prefix in PREFIXES.items():
        shapes = {name: shape for name, shape in header.shapes.items() if name.startswith(prefix)}
        if not shapes:
            raise UserError(
                f"{header.path} holds no {part.replace('_', ' ')}.",
                "It was published without one, for use with that of the base model.",
                "Use the full version of the file, or build a diffusers folder from it.",
            )
        check_floats(header, (name for name in shapes if not name.endswith(UNUSED)))
        wrong = _differences_after_conversion(part, prefix, read_config(reference, part), shapes)
        if wrong:
            raise _does_not_fit_error(
                header.path,
                reference,
                wrong,
                "Download it again, or pass the diffusers folder of the model that it was fine-tuned from as its "
                "reference.",
            )


def check_folder(folder: Path) -> None:
    """Checks the parts of a diffusers folder against their configs.

    Raises:
        UserError: a weight file is damaged, or its tensors are not those of its config; the message lists them.
    """
    for part in PREFIXES:
        files = sorted((folder / part).glob("*.safetensors"))
        variants = [file for file in files if ".fp16" in file.name]
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files if len(variants) == len(files) else [file for file in files if file not in variants]:
            if not file.name.endswith(".non_ema.safetensors"):
                shapes |= read_header(file).shapes
        if files and (folder / part / "config.json").is_file():
            wrong = _differences(part, read_config(folder, part), shapes)
            if wrong:
                config = folder / part / "config.json"
                raise _does_not_fit_error(folder, config, listed(wrong), "Download it again.")


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The config.json of a part of a diffusers folder.

    Raises:
        UserError: it cannot be read.
    """
    file = folder / part / "config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.",
            "It gives the sizes of this part of the model.",
            "Pass the diffusers folder of a base model; if this is one, download it again.",
        ) from None


def _differences_after_conversion(part: str, prefix: str, config: dict[str, Any], shapes: Shapes) -> str:
    """What differs between the config and the tensors of a single file once diffusers has converted them; empty if
    nothing does."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        converted = _convert(part, tensors, config)
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError) as error:
        return f"its {part} cannot be converted: {error}"
    used = {id(tensor) for tensor in converted.values()}
    unknown = [
        f"{name.removeprefix(prefix)} is unknown"
        for name, tensor in tensors.items()
        if id(tensor) not in used
        and not name.endswith(UNUSED)
        and not any(text in name for text in COPIED_OR_OF_TRAINING)
    ]
    if unknown:
        return listed(unknown)
    found = {name: tuple(tensor.shape) for name, tensor in converted.items() if tensor is not None}
    return listed(_differences(part, config, found))


def _convert(part: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> Mapping[str, Tensor | None]:
    """The tensors of a part by diffusers' keys, as diffusers' `from_single_file` converts them."""
    from diffusers.loaders import single_file_utils

    converters: dict[str, Callable[[], Mapping[str, Tensor | None]]] = {
        "unet": lambda: single_file_utils.convert_ldm_unet_checkpoint(tensors, config),
        "vae": lambda: single_file_utils.convert_ldm_vae_checkpoint(tensors, config),
        "text_encoder": lambda: single_file_utils.convert_ldm_clip_checkpoint(tensors),
    }
    with quiet(), torch.device("meta"):
        return converters[part]()


def _differences(part: str, config: dict[str, Any], found: Shapes) -> list[str]:
    """The tensors that are missing, unknown or of another shape than the config's model has them."""
    expected = {name.removeprefix("text_model."): shape for name, shape in _shapes_of_config(part, config).items()}
    found = {name.removeprefix("text_model."): shape for name, shape in found.items() if not name.endswith(UNUSED)}
    wrong = [f"{part}.{name} is missing" for name in expected if name not in found and not name.endswith(UNUSED)]
    wrong += [f"{part}.{name} is unknown" for name in found if name not in expected]
    return wrong + [
        f"{part}.{name} is {shape}, not {expected[name]}"
        for name, shape in found.items()
        if name in expected
        and shape != expected[name]
        and not (part == "vae" and _is_old_attention(name, shape, expected[name]))
    ]


def _shapes_of_config(part: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with quiet(), torch.device("meta"):
        model = {
            "unet": lambda: UNet2DConditionModel.from_config(config),
            "vae": lambda: AutoencoderKL.from_config(config),
            "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**config)),
        }[part]()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _is_old_attention(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Old VAEs have 1x1 convolutions where the attention is linear now. diffusers converts them."""
    return ".attentions." in name and shape[:2] == expected and shape[2:] in ((1,), (1, 1))


def _does_not_fit_error(path: Path, reference: Path, what: str, advice: str) -> UserError:
    return UserError(
        f"{path} does not hold the model that {reference} describes: {what}.",
        "It is damaged or incomplete, or was fine-tuned from a model of other sizes.",
        advice,
    )
