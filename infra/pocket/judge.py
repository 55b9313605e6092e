"""Does the text steer the picture? Generated stills, read back by the pocket CLIP model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infra.pocket.clip_model import judge
from infra.pocket.clips import random_scenes
from infra.pocket.image_model import tokenize

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from open_clip import CLIP


def judge_stills(
    pipeline: StableDiffusionPipeline, clip: CLIP, count: int = 64, seed: int = 100, guidance_scale: float = 5.0
) -> dict[str, Any]:
    """Share of `count` stills whose shape, colour and background are the prompt's; chance is 0.25, 0.2 and 0.25."""
    prompts = [scene.caption for scene in random_scenes(count, seed)]
    return judge(clip, pipeline.tokenizer, generate(pipeline, prompts, seed, guidance_scale), prompts)


@torch.no_grad()
def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int, guidance_scale: float) -> Tensor:
    """Pixels -1..1 (B, 3, H, W) of 25 DDIM steps."""
    ids = torch.cat([tokenize(pipeline.tokenizer, prompts), tokenize(pipeline.tokenizer, [""] * len(prompts))])
    device = pipeline.unet.device
    text = pipeline.text_encoder(ids.to(device)).last_hidden_state
    side = pipeline.unet.config.sample_size
    z_t = torch.randn(len(prompts), 4, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
    pipeline.scheduler.set_timesteps(25)
    for t in pipeline.scheduler.timesteps:
        wanted, free = pipeline.unet(torch.cat([z_t, z_t]), t, text).sample.chunk(2)
        z_t = pipeline.scheduler.step(free + guidance_scale * (wanted - free), t, z_t).prev_sample
    return torch.as_tensor(pipeline.vae.decode(z_t / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1))
