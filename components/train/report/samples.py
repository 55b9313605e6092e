"""Samples drawn during training: the same prompts from the same noise, so that only the weights differ.

F frames, C channels, h w latents, H W pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from components.diffusion.noise import BetaSchedule, Prediction, inference_scheduler
from components.diffusion.sampling import decode, denoise, image_pipeline, video_pipeline
from components.train.step import Draw, Stepper
from infra.video import UInt8

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS, GUIDANCE, SEED, FPS = 20, 7.5, 0, 8
CELL, LINE, MARGIN = 192, 14, 8
INK, PAPER = (38, 38, 42), (250, 249, 246)


def drawer(base: StableDiffusionPipeline, unet: nn.Module, schedule: BetaSchedule, prediction: Prediction) -> Draw:
    """Pictures of a prompt by `unet`, a video model or the base's own, by DDIM in 20 steps at a guidance of 7.5."""

    def draw(prompt: str, noise_1CFhw: torch.Tensor) -> UInt8:
        base.vae.to(noise_1CFhw.device)
        scheduler = inference_scheduler(schedule, "ddim", prediction)
        if not hasattr(unet.config, "motion_max_seq_length"):
            pipeline, noise = image_pipeline(base, unet, scheduler), noise_1CFhw[:, :, 0]
            return decode(base, denoise(pipeline, noise, prompt, "", STEPS, GUIDANCE))
        frames = noise_1CFhw.shape[2]
        pipeline = video_pipeline(base, unet, scheduler)
        latents = denoise(pipeline, noise_1CFhw, prompt, "", STEPS, GUIDANCE, num_frames=frames)
        return decode(base, latents[0].transpose(0, 1))

    return draw


class Samples:
    """Writes `<folder>/step-<step>.gif`, or `.png` of a model that draws stills: a column a prompt."""

    def __init__(self, folder: Path, stepper: Stepper, prompts: Sequence[str]) -> None:
        self._folder, self._stepper, self._prompts = folder, stepper, prompts

    @torch.no_grad()
    def make(self, step: int) -> Path:
        """By the model as it is now."""
        task, clips = self._stepper.task, []
        assert task.draw is not None
        for index, prompt in enumerate(self._prompts):
            generator = torch.Generator().manual_seed(SEED + index)
            shape = (1, 4, task.frames, *task.latent_size)
            noise = torch.randn(shape, generator=generator).to(self._stepper.process.device)
            with self._stepper.precision():
                clips.append(task.draw(prompt, noise))
        self._folder.mkdir(parents=True, exist_ok=True)
        pages = [_page(step, self._prompts, [clip[frame] for clip in clips]) for frame in range(len(clips[0]))]
        path = self._folder / f"step-{step:08d}.{'png' if len(pages) == 1 else 'gif'}"
        if len(pages) == 1:
            pages[0].save(path)
        else:
            pages[0].save(path, save_all=True, append_images=pages[1:], duration=round(1000 / FPS), loop=0)
        return path


def _page(step: int, prompts: Sequence[str], pictures: Sequence[UInt8]) -> Image.Image:
    """One frame of every prompt side by side, its prompt below."""
    height, width = pictures[0].shape[:2]
    scale = max(1, CELL // max(height, width))
    height, width = height * scale, width * scale
    letters = max(8, width // 7)
    texts = [textwrap.wrap(prompt or "(no prompt)", letters, max_lines=3, placeholder=" …") for prompt in prompts]
    lines = max(len(text) for text in texts)
    size = (len(prompts) * (width + MARGIN) + MARGIN, height + (lines + 1) * LINE + 3 * MARGIN)
    page = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(LINE - 3)
    pen.text((MARGIN, MARGIN), f"step {step:,}", INK, font)
    for column, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        left, top = MARGIN + column * (width + MARGIN), MARGIN + LINE + MARGIN // 2
        image = Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.NEAREST)
        page.paste(image, (left, top))
        pen.multiline_text((left, top + height + MARGIN // 2), "\n".join(text), INK, font, spacing=2)
    return page.quantize(256, dither=Image.Dither.NONE)
