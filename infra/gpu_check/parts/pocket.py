"""The pocket world's models from nothing, on the device: each as far as the minutes go."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from infra.gpu_check.context import Context
from infra.gpu_check.rows import Row
from infra.pocket import judge
from infra.pocket.clip_model import train_clip
from infra.pocket.image_model import build_tokenizer, train_base, train_vae

STILLS, PER_LOOK = 32_768, 4000
RIGHT = {"shape": 0.8, "colour": 0.95, "background": 0.95}
"""Shares of stills that are as prompted; the models that ship reach 0.92, 1 and 1."""
made: dict[str, Any] = {}
"""Of the checks before, in this process."""


def vae(context: Context) -> Iterator[Row]:
    steps, share = context.sizes.pocket_steps[0], context.sizes.pocket_share
    made["VAE"] = yield from _trained("VAE", steps, lambda: train_vae(steps, 0, context.device, share))


def base(context: Context) -> Iterator[Row]:
    """UNet and text encoder."""
    if "VAE" not in made:
        yield Row("pocket base model", status="not reached", note="needs the VAE")
        return
    steps, stills = context.sizes.pocket_steps[1], max(8, round(STILLS * context.sizes.pocket_share))
    trained = _trained("base model", steps, lambda: train_base(made["VAE"], build_tokenizer(), steps, 0, stills))
    made["base model"] = yield from trained


def clip(context: Context) -> Iterator[Row]:
    steps, pictures = context.sizes.pocket_steps[2], max(8, round(PER_LOOK * context.sizes.pocket_share))
    train = _trained("CLIP", steps, lambda: train_clip(build_tokenizer(), steps, 0, pictures, context.device))
    made["CLIP"] = yield from train


def judged(context: Context) -> Iterator[Row]:
    """Do the stills show what they were asked for?"""
    if not {"base model", "CLIP"} <= set(made):
        yield Row("pocket stills as prompted", status="not reached", note="needs base model and CLIP")
        return
    found = judge.judge_stills(made["base model"], made["CLIP"], count=64 if context.sizes.judged else 2)
    for name, share in found.items():
        yield context.at_least(RIGHT[name], f"pocket stills: {name} as prompted", share)


def _trained(what: str, steps: int, train: Callable[[], Any]) -> Generator[Row, None, Any]:
    began = time.perf_counter()
    model = train()
    yield Row(f"pocket {what}: {steps} steps", time.perf_counter() - began, "s")
    return model
