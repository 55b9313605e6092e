"""Clips to latents: the VAE's posterior means. F frames, C channels, H W pixels, h w latents.

Latents are fp16 and not scaled; a trainer multiplies by the VAE's `scaling_factor`, once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

UInt8 = NDArray[np.uint8]
Float16 = NDArray[np.float16]


def vae_folder(path: Path) -> Path:
    """The folder of a VAE: `path` itself, or `path/vae` of a pipeline.

    Raises:
        UserError: there is no VAE there.
    """
    for folder in (path, path / "vae"):
        config = folder / "config.json"
        if config.is_file() and "AutoencoderKL" in config.read_text(encoding="utf-8", errors="replace"):
            return folder
    found = "is not a folder" if not path.is_dir() else "holds no AutoencoderKL (config.json), nor does its vae/"
    raise UserError(
        f"{path} {found}.",
        "Videos are encoded by a VAE in diffusers format, or by that of a Stable Diffusion folder.",
        "Name such a folder as the base model.",
    )


def load_vae(folder: Path, device: str) -> AutoencoderKL:
    """The VAE in fp32 and eval mode, without gradients.

    Raises:
        UserError: its files cannot be read.
    """
    from diffusers import AutoencoderKL

    from components.quiet import quiet

    try:
        with quiet():
            vae = AutoencoderKL.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"The VAE in {folder} cannot be read: {error}", "", "Check the folder's files.") from None
    return vae.float().eval().requires_grad_(False).to(device)


def encode_frames(vae: AutoencoderKL, frames_FHWC: UInt8, batch: int) -> Float16:
    """Latents (F, C, h, w) of frames (F, H, W, 3), `batch` at a time. Values past fp16's range are infinite."""
    import torch

    parts = []
    with torch.inference_mode():
        for first in range(0, len(frames_FHWC), batch):
            pixels = torch.from_numpy(frames_FHWC[first : first + batch]).to(vae.device).permute(0, 3, 1, 2)
            mean = vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean
            parts.append(mean.half().cpu().numpy())
    return np.concatenate(parts)


def decode_latents(vae: AutoencoderKL, latents_FChw: NDArray[Any], batch: int = 8) -> UInt8:
    """Frames (F, H, W, 3) of unscaled latents (F, C, h, w)."""
    import torch

    parts = []
    with torch.inference_mode():
        for first in range(0, len(latents_FChw), batch):
            latents = torch.from_numpy(latents_FChw[first : first + batch].astype(np.float32)).to(vae.device)
            pixels = (vae.decode(latents).sample + 1) * 127.5
            parts.append(pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)
