"""An animation as an artifact: what it is made of, and its files (mp4, gif, a JSON row)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from components.base_model import BaseModel, fingerprint_of
from components.formats import existing, weights_input
from components.noise import BetaSchedule, Sampler
from infra import artifacts
from infra.artifacts import Artifact, Input
from infra.config import Config, execution
from infra.video import write_gif, write_mp4

if TYPE_CHECKING:
    from components.animator import Animator

KIND = "animation"
SMALL_PIXELS = 128  # below this a gif is enlarged, or nobody sees it


class WeightedFile(Config):
    """Weights and how strongly they count."""

    path: Path
    """A weight file, or the folder of its artifact."""
    scale: float = 1.0
    """Factor on the effect: 0 is off, 1 is as trained."""


class AnimationConfig(Config):
    """One animation."""

    prompt: str
    """What to show."""
    negative_prompt: str = ""
    """What to steer away from."""
    seed: int = 0
    """Seed of the starting noise; the same on every device."""
    frames: int = Field(16, ge=1)
    """Frames to make, at most the motion module's positions."""
    fps: int = Field(8, ge=1)
    """Playback speed, frames per second."""
    height: int | None = None
    """Pixels; none is the base model's own size."""
    width: int | None = None
    """Pixels; none is the base model's own size."""
    steps: int = Field(25, ge=1)
    """Denoising steps."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 is off."""
    scheduler: Sampler = "ddim"
    """The sampler; `ddim` as the official demos."""
    beta_schedule: BetaSchedule | None = None
    """Noise schedule; none is what the motion module was trained with."""
    control_videos: tuple[Path, ...] = execution(())
    """One for each ControlNet: a video, or a folder of pictures in the order of their names, a picture a frame, already
    in the ControlNet's form (edges, depth, poses). Their content, not their paths, is part of the identity."""


class AnimationModels(Config):
    """The weights an animation is made with."""

    base: BaseModel
    """Base or personalised model."""
    motion_module: Path | None = None
    """Motion module; none runs the image model on each frame with its own noise."""
    motion_loras: tuple[WeightedFile, ...] = ()
    """MotionLoRAs; their effects add up."""
    domain_adapter: WeightedFile | None = None
    """Domain adapter at scale alpha (paper eq. 4)."""
    controlnets: tuple[WeightedFile, ...] = ()
    """ControlNets, diffusers folders, each following one of the animation's control videos."""


class _Identity(Config):
    """What makes an animation what it is, beside the bytes of the weights."""

    animation: AnimationConfig
    motion_lora_scales: tuple[float, ...]
    domain_adapter_scale: float | None
    controlnet_scales: tuple[float, ...]


def inputs_of(models: AnimationModels) -> dict[str, Input]:
    """Fingerprints of all weights, base model first.

    Raises:
        UserError: a file is not there.
    """
    inputs = {"base": fingerprint_of(models.base)}
    if models.motion_module is not None:
        inputs["motion_module"] = weights_input(models.motion_module, "motion-module")
    for index, lora in enumerate(models.motion_loras):
        inputs[f"motion_lora_{index}"] = weights_input(lora.path, "motion-lora")
    if models.domain_adapter is not None:
        inputs["domain_adapter"] = weights_input(models.domain_adapter.path, "domain-adapter")
    for index, net in enumerate(models.controlnets):
        inputs[f"controlnet_{index}"] = artifacts.outside(existing(net.path, "ControlNet"), "controlnet")
    return inputs


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
    """
    from components.animator import Animator

    assert animator is None or animator.models == models, "the animator was made from other models"
    adapter = models.domain_adapter
    identity = _Identity(
        animation=config,
        motion_lora_scales=tuple(lora.scale for lora in models.motion_loras),
        domain_adapter_scale=None if adapter is None else adapter.scale,
        controlnet_scales=tuple(net.scale for net in models.controlnets),
    )
    inputs = inputs_of(models) if animator is None else dict(animator.inputs)
    for index, video in enumerate(config.control_videos):
        inputs[f"control_video_{index}"] = artifacts.outside(existing(video, "control video"), "control-video")
    if done := artifacts.find(out, KIND, identity, inputs):
        return done
    frames = (animator or Animator(models, device)).frames(config)
    with artifacts.draft(out, KIND, identity, inputs) as draft:
        write_mp4(draft.folder / "animation.mp4", frames, config.fps, crf=12)
        scale = 4 if min(frames.shape[1:3]) < SMALL_PIXELS else 1
        write_gif(draft.folder / "animation.gif", frames, config.fps, scale)
        hashes = {name: {"kind": given.kind, "sha256": given.fingerprint} for name, given in inputs.items()}
        row = {**config.model_dump(mode="json"), "models": models.model_dump(mode="json"), "hashes": hashes}
        row |= {"height": int(frames.shape[1]), "width": int(frames.shape[2])}
        artifacts.write_json(draft.folder / "animation.json", row)
        draft.counts["frames"] = len(frames)
        change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() if len(frames) > 1 else 0.0
        draft.metrics["change_per_frame"] = round(float(change), 4)
        assert math.isfinite(draft.metrics["change_per_frame"])
    return artifacts.load(out, KIND)
