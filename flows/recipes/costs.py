"""What the recipe sd15 costs on one H100, counted: the table of README.md. `python -m flows.recipes.costs` writes it.

FLOPs and bytes are counted on tensors without memory; hours assume the middle one of `components.stages.plan.SHARES`
of the GPU's matmul rate. Nothing here is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

GPU = "h100"
FPS, HOUR_SECONDS = 8, 3600
HEADER = "| step | time | disk | GPU memory |"
README = Path(__file__).resolve().parents[2] / "README.md"


def table() -> str:
    """The rows in Markdown."""
    from components.base.model import HUB_REFERENCE
    from components.stages.plan import plan
    from flows.recipes.sd15 import sd15

    recipe = sd15()
    size = recipe.cache.size // 8
    rows = [HEADER, "|---|---|---|---|", _cache_row(recipe.cache.size)]
    titles = {"domain-adapter": "images", "motion-module": "clips", "motion-lora": "clips"}
    for stage in (recipe.domain_adapter, recipe.motion_module, recipe.motion_lora):
        found = plan(stage, Path(HUB_REFERENCE), (size, size), GPU, recipe.motion_module)
        train = stage.train
        fits = "" if found.mode == "none" else f", {found.mode} recomputed"
        rows.append(
            f"| {stage.title}, {train.steps:,} steps of {train.batch_size} {titles[stage.kind]} "
            f"| {_duration(found.hours(_share()) * HOUR_SECONDS)} "
            f"| {_bytes(4 * found.trained)}, twice (two formats); "
            f"{_bytes(found.checkpoints * found.checkpoint_bytes)} of checkpoints while it runs "
            f"| {_bytes(found.memory.total)}{fits} |"
        )
    return "\n".join([*rows, _animation_row(recipe.animation.height or 512, recipe.animation.steps)])


def _share() -> float:
    from components.stages.plan import SHARES

    return SHARES[1]


def _cache_row(size: int) -> str:
    import torch

    from components.bench.models import random_sd_vae

    frames = FPS * HOUR_SECONDS
    with torch.device("meta"):
        vae = random_sd_vae()
        flops = _flops(lambda: vae.encode(torch.empty(1, 3, size, size)))
    latents = 4 * (size // 8) ** 2 * 2  # fp16
    return (
        f"| cache, per hour of video at {FPS} fps ({frames:,} frames) | {_duration(_seconds(frames * flops))} for the "
        f"VAE; decoding on the CPU can be the limit | {_bytes(frames * latents)} | "
        f"{_bytes(2 * sum(p.numel() for p in vae.parameters()))} of weights |"
    )


def _animation_row(size: int, steps: int, frames: int = 16) -> str:
    import torch
    from diffusers import UNet2DConditionModel

    from components.base.model import HUB_REFERENCE
    from components.bench.models import random_sd_vae
    from components.diffusion.objective import video_predictor
    from components.motion.module import MotionModuleConfig, fresh_motion_adapter, insert_motion_module
    from components.stages.plan import unet_settings

    settings = unet_settings(Path(HUB_REFERENCE))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(settings)
        video = insert_motion_module(unet, fresh_motion_adapter(MotionModuleConfig(preset="v3"), unet))
        z = torch.empty(2, 4, frames, size // 8, size // 8)  # classifier-free guidance
        text = torch.empty(2, 77, settings["cross_attention_dim"])
        denoising = steps * _flops(lambda: video_predictor(video)(z, torch.zeros(2), text))
        vae = random_sd_vae()
        decoding = frames * _flops(lambda: vae.decode(torch.empty(1, 4, size // 8, size // 8)))
    text_encoder = 123_060_480
    weights = sum(p.numel() for part in (video, vae) for p in part.parameters()) + text_encoder
    return (
        f"| one animation, {size} px, {frames} frames, {steps} steps | {_duration(_seconds(denoising + decoding))} "
        f"| 2 MB | {_bytes(2 * weights)} of weights in fp16 |"
    )


def _flops(call: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return int(counter.get_total_flops())


def _seconds(flops: float) -> float:
    from components.stages.plan import GPUS

    return flops / (_share() * GPUS[GPU].tflops * 1e12)


def _duration(seconds: float) -> str:
    for limit, unit, divisor in ((100, "s", 1), (100 * 60, "min", 60)):
        if seconds < limit:
            return f"{seconds / divisor:.2g} {unit}"
    return f"{seconds / 3600:.2g} h"


def _bytes(count: float) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.3g} GB"


def main() -> None:
    text = README.read_text(encoding="utf-8")
    start = text.index(HEADER)
    README.write_text(text[:start] + table() + text[text.index("\n\n", start) :], encoding="utf-8")


if __name__ == "__main__":
    main()
