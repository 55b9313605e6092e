"""ControlNets of an animation: the networks, and the pictures that they follow, one a frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from components.base.hub import LOADING_ERRORS, first_line
from components.files.weights import read_header
from infra.errors import UserError
from infra.quiet import quiet
from infra.video import read_mp4

if TYPE_CHECKING:
    from diffusers import ControlNetModel, StableDiffusionPipeline

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def load_controlnet(folder: Path, base: StableDiffusionPipeline) -> ControlNetModel:
    """A ControlNet in fp32 for a base model, from a diffusers folder.

    Raises:
        UserError: not a ControlNet's folder, damaged, or made for a base model of another family.
    """
    from diffusers import ControlNetModel

    weights = folder / "diffusion_pytorch_model.safetensors"
    if not (folder / "config.json").is_file() or not weights.is_file():
        raise UserError(
            f"{folder} is not a ControlNet.",
            f"A ControlNet is a diffusers folder with config.json and {weights.name}.",
            "Check the path given as ControlNet.",
        )
    read_header(weights)
    try:
        with quiet():
            net = ControlNetModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
    except LOADING_ERRORS as error:
        raise UserError(
            f"{folder} could not be loaded as a ControlNet: {first_line(error)}", "It is damaged.", "Download it again."
        ) from None
    unet, halvings = base.unet, len(net.config.conditioning_embedding_out_channels) - 1
    names = ("block_out_channels", "cross_attention_dim", "layers_per_block", "in_channels")
    wrong = [name for name in names if _plain(net.config[name]) != _plain(unet.config[name])]
    if wrong or 2**halvings != base.vae_scale_factor:
        differs = ", ".join(f"{name} {net.config[name]}, not {unet.config[name]}" for name in wrong)
        raise UserError(
            f"{folder} does not fit the base model: {differs or 'other sizes'}.",
            "A ControlNet copies half of the UNet it was made for.",
            "Pass a ControlNet of this base model's family.",
        )
    return net.eval().requires_grad_(False)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def control_pictures(path: Path, frames: int) -> list[Image.Image]:
    """The first `frames` pictures of a video or of a folder.

    Raises:
        UserError: there are fewer, or none can be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        pictures = [Image.open(file).convert("RGB") for file in files[:frames]]
    else:
        try:
            pictures = [Image.fromarray(frame) for frame in read_mp4(path)[:frames]]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read as a video: {first_line(error)}.",
                "A ControlNet follows a video, or a folder of pictures.",
                "Check the path.",
            ) from None
    if len(pictures) < frames:
        raise UserError(
            f"{path} has {len(pictures)} pictures, and the animation {frames} frames.",
            "A ControlNet needs one for every frame.",
            "Pass a longer video, or ask for fewer frames.",
        )
    return pictures
