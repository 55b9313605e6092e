"""How fast an animation is made, with how much memory: ours against diffusers' own pipeline in fp16."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from components.animate.animator import Animator
from components.animate.config import AnimationConfig, AnimationModels
from components.base.model import BaseModel
from components.bench.models import SIZES, random_pipeline
from components.motion.files import save_motion_module
from components.motion.module import MotionModuleConfig, config_metadata, fresh_motion_adapter
from components.train.report.meter import peak_gib, reset_peak
from infra.gpu_check.context import Context
from infra.gpu_check.parts.basics import synchronize
from infra.gpu_check.rows import Row
from infra.pocket.build import WEIGHTS

if TYPE_CHECKING:
    from diffusers import MotionAdapter, StableDiffusionPipeline

PROMPT = "a red circle moving left on sand"


def ours(context: Context) -> Iterator[Row]:
    """From the models in memory to frames, text and decoding included."""
    with animator(context) as made:
        config = config_of(context)
        seconds, peak = _timed(context, lambda steps: made.frames(config.replace(steps=steps)))
    yield Row("animation: ours", seconds, "s", note=f"peak {peak:.2f} GiB, {_size(context)}")


def stock(context: Context) -> Iterator[Row]:
    """`AnimateDiffPipeline`, as its documentation has it."""
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    base, adapter, _ = models(context)
    half = torch.float16 if context.device.type == "cuda" else torch.float32
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1, timestep_spacing="linspace")
    pipeline = AnimateDiffPipeline(
        vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=base.unet,
        motion_adapter=adapter, scheduler=scheduler,
    ).to(context.device, half)  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    sizes = context.sizes

    def animate(steps: int) -> Any:
        return pipeline(
            prompt=PROMPT, height=sizes.animation_size, width=sizes.animation_size, num_frames=sizes.animation_frames,
            num_inference_steps=steps, guidance_scale=7.5, output_type="np",
        ).frames  # fmt: skip

    seconds, peak = _timed(context, animate)
    yield Row("animation: diffusers, fp16", seconds, "s", note=f"peak {peak:.2f} GiB, {_size(context)}")
    own = context.value("animation: ours")
    if own is not None:
        yield context.at_least(1.0, "animation: ours against diffusers", seconds / own, "times as fast")


@contextmanager
def animator(context: Context) -> Iterator[Animator]:
    """The real one, on a base model and a motion module with random weights. The pocket base's files stand for those of
    the base model, which are hashed and not read."""
    base, adapter, notes = models(context)
    with tempfile.TemporaryDirectory() as folder:
        save_motion_module(Path(folder), adapter.to("cpu", torch.float16), notes)
        del adapter
        given = AnimationModels(base=BaseModel(path=WEIGHTS / "base"), motion_module=Path(folder))
        with Animator(given, context.device.type, base=base) as made:
            yield made


def config_of(context: Context) -> AnimationConfig:
    sizes = context.sizes
    return AnimationConfig(
        prompt=PROMPT, frames=sizes.animation_frames, steps=sizes.animation_steps, height=sizes.animation_size,
        width=sizes.animation_size,
    )  # fmt: skip


def models(context: Context) -> tuple[StableDiffusionPipeline, MotionAdapter, dict[str, object]]:
    size = SIZES[context.sizes.model]
    base = random_pipeline(size, context.device)
    config = MotionModuleConfig(preset=size.preset)
    with context.device:
        return base, fresh_motion_adapter(config, base.unet), config_metadata(config)


def _timed(context: Context, animate: Callable[[int], object]) -> tuple[float, float]:
    """Seconds of the whole number of steps after a start of one, and its peak memory in GiB."""
    animate(1)
    reset_peak(context.device)
    synchronize(context.device)
    began = time.perf_counter()
    animate(context.sizes.animation_steps)
    synchronize(context.device)
    return time.perf_counter() - began, peak_gib(context.device)


def _size(context: Context) -> str:
    sizes = context.sizes
    return f"{sizes.animation_size} px × {sizes.animation_frames} × {sizes.animation_steps} steps"
