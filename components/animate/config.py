"""An animation: what to show, with which weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from components.base.model import BaseModel, fingerprint_of
from components.diffusion.noise import BetaSchedule, Sampler
from components.files.paths import require_exists, weights_input
from infra.artifacts import artifacts
from infra.artifacts.artifacts import Input
from infra.config import Config, execution
from infra.runtime import pick_device

Precision = Literal["auto", "fp32", "fp16", "bf16"]
SAMPLERS_REVISED = ("ddim", "pndm")
"""Samplers that once made other frames; older animations keep their fingerprints."""


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
    precision: Precision = "auto"
    """Of all networks; `auto` is fp16 on CUDA and fp32 on a CPU. An animation of another precision than fp32 is another
    animation: see `identity`."""
    control_videos: tuple[Path, ...] = execution(())
    """One for each ControlNet: a video, or a folder of pictures in the order of their names, a picture a frame, already
    in the ControlNet's form (edges, depth, poses). Their content, not their paths, is part of the identity."""

    def identity(self) -> dict[str, Any]:
        """`precision` counts once it is resolved, and only where it is not fp32: fp32 animations keep the fingerprints
        that they had before there was a choice."""
        fields = super().identity()
        if fields["precision"] in ("auto", "fp32"):
            del fields["precision"]
        if fields["scheduler"] in SAMPLERS_REVISED:
            fields["scheduler"] += ", revised"
        return fields

    def resolved(self, device: str) -> AnimationConfig:
        """With `auto` replaced by the precision for this device (`auto`, `cpu`, `cuda`)."""
        return self.replace(precision=resolve_precision(self.precision, device))


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


def resolve_precision(precision: Precision, device: str) -> Precision:
    """fp16 on CUDA and fp32 elsewhere for `auto`."""
    if precision != "auto":
        return precision
    return "fp16" if pick_device(device).type == "cuda" else "fp32"


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
        inputs[f"controlnet_{index}"] = artifacts.outside(require_exists(net.path, "ControlNet"), "controlnet")
    return inputs
