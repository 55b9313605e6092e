"""An animation as an artifact: what it is made of, and its files (mp4, gif, a JSON row)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.animate.config import AnimationConfig, AnimationModels, inputs_of
from components.files.paths import require_exists
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Artifact
from infra.artifacts.sealing import write_json
from infra.config import Config
from infra.errors import TransientError
from infra.memory import free_memory, is_out_of_memory, memory_of
from infra.runtime import pick_device
from infra.video import write_gif, write_mp4

if TYPE_CHECKING:
    from components.animate.animator import Animator

KIND = "animation"
SMALL_PIXELS = 128  # below this a gif is enlarged, or nobody sees it


class _Identity(Config):
    """What makes an animation what it is, beside the bytes of the weights."""

    animation: AnimationConfig
    motion_lora_scales: tuple[float, ...]
    domain_adapter_scale: float | None
    controlnet_scales: tuple[float, ...]


def animate(
    config: AnimationConfig,
    models: AnimationModels,
    out: Path,
    device: str = "auto",
    animator: Animator | None = None,
) -> Artifact:
    """Makes one `animation` artifact: mp4, gif, and animation.json with the prompt, seed, models, scales and hashes.

    `animator` is one already made from `models`, to spare loading them again.

    Raises:
        UserError: see `Animator`.
        WorkError: out of memory, or numbers that the precision cannot hold.
    """
    assert animator is None or animator.models == models, "the animator was made from other models"
    config = config.resolved(device) if animator is None else config.replace(precision=animator.precision)
    adapter = models.domain_adapter
    identity = _Identity(
        animation=config,
        motion_lora_scales=tuple(lora.scale for lora in models.motion_loras),
        domain_adapter_scale=None if adapter is None else adapter.scale,
        controlnet_scales=tuple(net.scale for net in models.controlnets),
    )
    inputs = inputs_of(models) if animator is None else dict(animator.inputs)
    for index, video in enumerate(config.control_videos):
        inputs[f"control_video_{index}"] = artifacts.outside(require_exists(video, "control video"), "control-video")
    if done := artifacts.find(out, KIND, identity, inputs):
        return done
    frames = (animator or _loaded(models, device, config)).frames(config)
    with artifacts.draft(out, KIND, identity, inputs) as draft:
        write_mp4(draft.folder / "animation.mp4", frames, config.fps, crf=12)
        scale = 4 if min(frames.shape[1:3]) < SMALL_PIXELS else 1
        write_gif(draft.folder / "animation.gif", frames, config.fps, scale)
        hashes = {name: {"kind": given.kind, "sha256": given.fingerprint} for name, given in inputs.items()}
        row = {**config.model_dump(mode="json"), "models": models.model_dump(mode="json"), "hashes": hashes}
        row |= {"height": int(frames.shape[1]), "width": int(frames.shape[2])}
        write_json(draft.folder / "animation.json", row)
        draft.counts["frames"] = len(frames)
        change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() if len(frames) > 1 else 0.0
        draft.metrics["change_per_frame"] = round(float(change), 4)
        assert math.isfinite(draft.metrics["change_per_frame"])
    return artifacts.load(out, KIND)


def _loaded(models: AnimationModels, device: str, config: AnimationConfig) -> Animator:
    """
    Raises:
        TransientError: the models do not fit into the device's memory.
    """
    from components.animate.animator import Animator

    try:
        return Animator(models, device, config.precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    raise TransientError(
        f"Out of memory while loading the models in {config.precision}.",
        f"{memory_of(pick_device(device))} now.",
        "Set animation.precision=fp16, or free memory on the device.",
    )
