"""Clips to latents: the VAE's posterior. B batch, F frames, C channels, H W pixels, h w latents.

Latents are fp16 and not scaled; a trainer multiplies by the VAE's `scaling_factor`, once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_prep.config import Precision
from infra.errors import UserError, WorkError
from infra.logs import get_logger
from infra.memory import free_memory, is_out_of_memory, memory_of

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL
    from torch import Tensor

UInt8 = NDArray[np.uint8]
Float16 = NDArray[np.float16]
Clip = TypeVar("Clip")

CAPTIONS_BATCH = 64
log = get_logger("data_prep")


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


def load_vae(folder: Path, device: str, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The VAE in eval mode, without gradients; in fp32 unless another `dtype` is named.

    Raises:
        UserError: its files cannot be read.
    """
    import torch
    from diffusers import AutoencoderKL

    from infra.quiet import quiet

    try:
        with quiet():
            vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=dtype or torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"The VAE in {folder} cannot be read: {error}", "", "Check the folder's files.") from None
    # channels last: on two CPUs half the time of the default layout at 16 frames, and what tensor cores want
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def vae_figures(vae: AutoencoderKL) -> dict[str, Any]:
    """What a cache's record says of its VAE, given in fp32: hash of the weights, and the factor that scales latents."""
    from components.base.model import vae_sha256

    return {"vae_sha256": vae_sha256(vae), "scaling_factor": float(vae.config.scaling_factor)}


def dtype_of(precision: Precision, device: str) -> torch.dtype:
    """`auto` is bf16 on a GPU, which no VAE overflows, and fp32 on a CPU."""
    import torch

    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def batch_of(batch: int, size: int, device: str) -> int:
    """Frames at a time: as given, or for 0 as many as keep a GPU busy, or a CPU core within its cache."""
    pixels = 16 * 512 * 512 if device.startswith("cuda") else 16 * 64 * 64
    return batch or max(1, pixels // (size * size))


@dataclass(frozen=True)
class Latents:
    """The posterior of a clip: (F, C, h, w) fp16, unscaled. Values past fp16's range are infinite."""

    mean: Float16
    logvar: Float16 | None = None


@dataclass
class _Waiting(Generic[Clip]):
    """A clip, some of whose frames are not encoded yet."""

    clip: Clip
    frames: int
    parts: list[NDArray[np.float16]]

    @property
    def done(self) -> bool:
        return sum(len(part) for part in self.parts) == self.frames


class Encoder:
    """Encodes clips by a VAE, in batches of one shape that run across clips."""

    def __init__(self, vae: AutoencoderKL, batch: int, moments: bool = False) -> None:
        """`batch` frames at a time; with `moments`, log-variances beside the means."""
        self._vae, self._batch, self._moments = vae, batch, moments
        self._device, self._dtype = vae.device, vae.dtype  # diffusers looks through all modules for each of them

    def warm(self, size: int) -> None:
        """Has the kernels for frames of this size chosen, by a black batch."""
        self._encode(np.zeros((self._batch, size, size, 3), np.uint8)).cpu()

    def stream(self, clips: Iterable[tuple[Clip, UInt8]]) -> Iterator[tuple[Clip, Latents]]:
        """The latents of clips of frames (F, H, W, 3), all of one size, in their order.

        A batch that is not full is filled up with black: kernels are chosen by the batch's shape, so that a frame's
        latents are the same bits whatever it is encoded with. The next batch is on its way to the device before the
        last one is fetched.
        """
        waiting: deque[_Waiting[Clip]] = deque()
        under_way: deque[tuple[Tensor, int]] = deque()
        frames: list[UInt8] = []
        for clip, frames_FHWC in clips:
            waiting.append(_Waiting(clip, len(frames_FHWC), []))
            frames.append(frames_FHWC)
            while sum(map(len, frames)) >= self._batch:
                flat = np.concatenate(frames)
                batch = flat[: self._batch]
                under_way.append((self._encode(batch), len(batch)))
                frames = [flat[len(batch) :]]
                while len(under_way) > 1:
                    self._hand_out(under_way.popleft(), waiting)
                yield from self._finished(waiting)
        rest = np.concatenate(frames) if frames else np.zeros((0,), np.uint8)
        if len(rest):
            black = np.zeros((self._batch - len(rest), *rest.shape[1:]), np.uint8)
            under_way.append((self._encode(np.concatenate([rest, black])), len(rest)))
        while under_way:
            self._hand_out(under_way.popleft(), waiting)
        yield from self._finished(waiting)

    def _encode(self, frames_BHWC: UInt8) -> Tensor:
        """(B, C or 2C, h, w) fp16 on the VAE's device: means, then log-variances. Out of memory halves the batch, for
        this and all later frames.

        Raises:
            WorkError: a single frame is too much.
        """
        import torch

        while True:
            batches = range(0, len(frames_BHWC), self._batch)
            try:
                parts = [self._forward(frames_BHWC[first : first + self._batch]) for first in batches]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
            self._halve_batch(frames_BHWC.shape[1])

    def _halve_batch(self, size: int) -> None:
        memory = memory_of(self._device)
        if self._batch == 1:
            raise WorkError(
                f"Out of memory while encoding one frame of {size} pixels in {self._dtype}.",
                f"{memory}. Finished shards are kept.",
                "Free memory on the device, set cache.precision=bf16, or lower cache.size or cache.workers.",
            )
        self._batch //= 2
        log.warning("Out of memory (%s): from now on %d frames are encoded at a time.", memory, self._batch)

    def _forward(self, frames_BHWC: UInt8) -> Tensor:
        import torch

        pixels = torch.from_numpy(frames_BHWC)
        if self._device.type == "cuda":
            pixels = pixels.pin_memory().to(self._device, non_blocking=True)
        with torch.inference_mode():  # permuted, the pixels are in channels-last order already
            scaled = pixels.permute(0, 3, 1, 2).to(self._dtype).div_(127.5).sub_(1)
            posterior = self._vae.encode(scaled).latent_dist
            values = torch.cat([posterior.mean, posterior.logvar], dim=1) if self._moments else posterior.mean
            return values.half().contiguous()

    def _hand_out(self, batch: tuple[Tensor, int], waiting: deque[_Waiting[Clip]]) -> None:
        values, count = batch
        left = values[:count].cpu().numpy()
        for clip in waiting:
            missing = clip.frames - sum(part.shape[0] for part in clip.parts)
            clip.parts.append(left[:missing])
            left = left[missing:]
            if not len(left):
                return

    def _finished(self, waiting: deque[_Waiting[Clip]]) -> Iterator[tuple[Clip, Latents]]:
        while waiting and waiting[0].done:
            first = waiting.popleft()
            values = np.concatenate(first.parts)
            channels = values.shape[1] // (2 if self._moments else 1)
            yield first.clip, Latents(values[:, :channels], values[:, channels:] if self._moments else None)


class CaptionEncoder:
    """A Stable Diffusion 1.x pipeline's tokenizer and text encoder. L tokens, D wide."""

    def __init__(self, pipeline: Path, device: str) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        from infra.quiet import quiet

        with quiet():
            self._tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer", local_files_only=True)
            model = CLIPTextModel.from_pretrained(pipeline / "text_encoder", local_files_only=True)
        self._model = model.float().eval().requires_grad_(False).to(device)

    def __call__(self, captions: list[str]) -> Float16:
        """(N, L, D): the last hidden states, as the UNet gets them. A caption that is too long is cut, as in SD."""
        import torch

        parts = []
        with torch.inference_mode():
            for first in range(0, len(captions), CAPTIONS_BATCH):
                tokens = self._tokenizer(
                    captions[first : first + CAPTIONS_BATCH],
                    padding="max_length",
                    max_length=self._tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                )
                states = self._model(tokens.input_ids.to(self._model.device))[0]
                parts.append(states.half().cpu().numpy())
        return np.concatenate(parts)


def text_folder(path: Path) -> Path:
    """The pipeline folder with `tokenizer/` and `text_encoder/` at `path`, or above it where `path` is its `vae/`.

    Raises:
        UserError: there is none.
    """
    for folder in (path, path.parent):
        if (folder / "text_encoder/config.json").is_file() and (folder / "tokenizer").is_dir():
            return folder
    raise UserError(
        f"{path} has no text_encoder/ and tokenizer/.",
        "Caption embeddings are made by the text encoder of a Stable Diffusion folder in diffusers format.",
        "Name such a folder as the base model, or leave caption_embeddings off.",
    )


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
