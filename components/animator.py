"""The animator: any mix of base model, motion module, MotionLoRAs and domain adapter, from a prompt to frames.

F frames, N pictures, H W pixels, h w latents. All weights are folded into one UNet when the animator is made, so that
what a call returns depends on its own config only: same seed, same frames, whatever ran before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from components.base_model import BaseModel, fingerprint_of, load_base
from components.domain_adapter import apply_domain_adapter
from components.formats import weight_file
from components.motion_lora import apply_motion_lora
from components.motion_module import insert, load_motion_module
from components.noise import inference_scheduler
from components.quiet import quiet
from infra import artifacts
from infra.artifacts import Artifact, Input
from infra.config import Config
from infra.errors import UserError
from infra.logs import get_logger, progress
from infra.runtime import pick_device
from infra.video import write_gif, write_mp4

if TYPE_CHECKING:
    from diffusers import AnimateDiffPipeline, StableDiffusionPipeline

UInt8 = NDArray[np.uint8]
KIND = "animation"
PICTURES_AT_ONCE = 16
SMALL_PIXELS = 128  # below this a gif is enlarged, or nobody sees it
log = get_logger("components")


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
    """Denoising steps (DDIM)."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 is off."""


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


class Animator:
    """Loads the models once and animates any number of prompts."""

    def __init__(self, models: AnimationModels, device: str = "auto") -> None:
        """Raises UserError where a file is missing, of another kind, or does not fit the others."""
        if models.motion_loras and models.motion_module is None:
            raise UserError(
                "A MotionLoRA was given without a motion module.",
                "It changes the motion module's weights and does nothing alone.",
                "Add --motion-module.",
            )
        self.models = models
        self.inputs = inputs_of(models)
        self._device = pick_device(device)
        self._images: StableDiffusionPipeline = load_base(models.base)
        if models.domain_adapter is not None:
            apply_domain_adapter(self._images.unet, models.domain_adapter.path, models.domain_adapter.scale)
        self._video: AnimateDiffPipeline | None = None
        self._positions: int | None = None
        if models.motion_module is not None:
            self._add_motion(models.motion_module)
        schedule = self._images.scheduler.config.get("beta_schedule", "scaled_linear")
        self._images.scheduler = inference_scheduler(schedule if schedule == "linear" else "scaled_linear")
        self._images.to(self._device)

    def _add_motion(self, path: Path) -> None:
        from diffusers import AnimateDiffPipeline

        adapter, notes = load_motion_module(path)
        base = self._images
        group_norm: Any = notes.get("group_norm", "per_frame")
        unet = insert(base.unet, adapter, group_norm)
        for lora in self.models.motion_loras:
            apply_motion_lora(unet, lora.path, lora.scale, notes)
        schedule: Any = notes.get("beta_schedule", "linear")
        with quiet():
            video = AnimateDiffPipeline(
                vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=unet,
                motion_adapter=adapter, scheduler=inference_scheduler(schedule),
            )  # fmt: skip
        video.unet.eval().requires_grad_(False)
        video.set_progress_bar_config(disable=True)
        self._video = video.to(self._device)
        self._positions = int(adapter.config.motion_max_seq_length)

    def frames(self, config: AnimationConfig) -> UInt8:
        """The animation, uint8 (F, H, W, 3); without a motion module, F pictures with noise of their own.

        Raises:
            UserError: more frames than the motion module has positions, or a size the model cannot make.
        """
        height, width = self._size(config)
        self._warn_if_cut(config.prompt)
        if self._video is None:
            return self.images(config, config.frames)
        if self._positions is not None and config.frames > self._positions:
            raise UserError(
                f"{config.frames} frames were asked for and the motion module has {self._positions} positions.",
                "It has never seen a longer window and cannot tell later frames apart.",
                f"Ask for at most {self._positions} frames.",
            )
        shape = (1, 4, config.frames, height, width)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
        with progress(config.steps, "animating", "step") as bar:
            result = self._call(self._video, config, noise, bar.update, num_frames=config.frames)
        return _to_uint8(np.asarray(result)[0])

    def images(self, config: AnimationConfig, count: int) -> UInt8:
        """`count` pictures of the prompt by the image model alone, uint8 (N, H, W, 3); picture i is a function of
        (seed, i), whatever the count."""
        height, width = self._size(config)
        noises = [
            torch.randn((4, height, width), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + i))
            for i in range(count)
        ]
        pictures = []
        groups = [torch.stack(noises[i : i + PICTURES_AT_ONCE]) for i in range(0, count, PICTURES_AT_ONCE)]
        with progress(config.steps * len(groups), "drawing", "step") as bar:
            for noise in groups:
                result = self._call(self._images, config, noise, bar.update, num_images_per_prompt=len(noise))
                pictures.append(_to_uint8(np.asarray(result)))
        return np.concatenate(pictures)

    def _call(
        self, pipeline: Any, config: AnimationConfig, noise: Tensor, advance: Callable[[], object], **extra: Any
    ) -> Any:
        """Float frames 0..1 as the pipeline gives them. The schedulers' sigma is 1, so noise goes in as it is."""

        def on_step_end(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            advance()
            return values

        factor = pipeline.vae_scale_factor
        with quiet():
            return pipeline(
                prompt=config.prompt,
                negative_prompt=config.negative_prompt,
                height=noise.shape[-2] * factor,
                width=noise.shape[-1] * factor,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance_scale,
                latents=noise.to(self._device),
                output_type="np",
                return_dict=False,
                callback_on_step_end=on_step_end,
                **extra,
            )[0]

    def _size(self, config: AnimationConfig) -> tuple[int, int]:
        """Height and width in latents."""
        factor = self._images.vae_scale_factor
        own = int(self._images.unet.config.sample_size) * factor
        height, width = config.height or own, config.width or own
        if height % 8 or width % 8 or min(height, width) < 8 * factor:
            raise UserError(
                f"{width}x{height} pixels is not a size that the model can make.",
                f"Both sides must be multiples of 8 and at least {8 * factor}.",
                f"The model's own size is {own}x{own}.",
            )
        return height // factor, width // factor

    def _warn_if_cut(self, prompt: str) -> None:
        tokenizer = self._images.tokenizer
        with quiet():
            length = len(tokenizer(prompt)["input_ids"])
        if length > tokenizer.model_max_length:
            log.warning("The prompt has %d tokens and the model reads %d.", length, tokenizer.model_max_length)


def _to_uint8(frames: NDArray[np.floating[Any]]) -> UInt8:
    return np.asarray(np.round(np.clip(frames, 0, 1) * 255), dtype=np.uint8)


class _Identity(Config):
    """What makes an animation what it is, beside the bytes of the weights."""

    animation: AnimationConfig
    motion_lora_scales: tuple[float, ...]
    domain_adapter_scale: float | None


def inputs_of(models: AnimationModels) -> dict[str, Input]:
    """Fingerprints of all weights, base model first.

    Raises:
        UserError: a file is not there.
    """
    inputs = {"base": fingerprint_of(models.base)}
    if models.motion_module is not None:
        inputs["motion_module"] = _weights_input(models.motion_module, "motion-module")
    for index, lora in enumerate(models.motion_loras):
        inputs[f"motion_lora_{index}"] = _weights_input(lora.path, "motion-lora")
    if models.domain_adapter is not None:
        inputs["domain_adapter"] = _weights_input(models.domain_adapter.path, "domain-adapter")
    return inputs


def _weights_input(path: Path, kind: str) -> Input:
    if not path.exists():
        raise UserError(f"{path} does not exist.", f"It was given as {kind.replace('-', ' ')}.", "Check the path.")
    if (path / artifacts.RECORD).is_file():
        return artifacts.load(path, kind).as_input()
    return artifacts.outside(weight_file(path), kind)


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
    assert animator is None or animator.models == models, "the animator was made from other models"
    adapter = models.domain_adapter
    identity = _Identity(
        animation=config,
        motion_lora_scales=tuple(lora.scale for lora in models.motion_loras),
        domain_adapter_scale=None if adapter is None else adapter.scale,
    )
    inputs = inputs_of(models) if animator is None else animator.inputs
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
