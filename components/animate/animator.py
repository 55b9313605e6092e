"""The animator: any mix of base model, motion module, MotionLoRAs, domain adapter and ControlNets, to frames.

F frames, N pictures, H W pixels, h w latents. What a call returns depends on the models in use and its own config only:
same seed, same frames, whatever ran before.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from components.animate.config import AnimationConfig, AnimationModels, inputs_of
from components.animate.control import control_pictures, load_controlnet
from components.base.model import load_base, prediction_type_of
from components.diffusion.noise import BetaSchedule, inference_scheduler
from components.diffusion.sampling import decode, denoise, image_pipeline, video_pipeline
from components.lora.domain_adapter import load_domain_adapter
from components.lora.motion_lora import load_motion_lora
from components.lora.stack import LoraStack, check_fits
from components.motion.files import load_motion_module
from components.motion.module import insert_motion_module
from infra.artifacts.artifacts import Input
from infra.errors import UserError
from infra.logs import get_logger, progress
from infra.quiet import quiet
from infra.runtime import pick_device
from infra.video import UInt8

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionPipeline, UNetMotionModel
    from tqdm import tqdm

PICTURES_AT_ONCE = 16
log = get_logger("components")


class Animator:
    """Loads the models once and animates any number of prompts, and any number of combinations on one base model.

    A base pipeline that is passed in is used and given back by `close` (or the end of a `with` block) as it was.
    """

    def __init__(
        self, models: AnimationModels, device: str = "auto", base: StableDiffusionPipeline | None = None
    ) -> None:
        """`base` is `models.base` already loaded, to spare loading it again.

        Raises:
            UserError: a file is missing, of another kind, or does not fit the others.
        """
        _check_combination(models)
        self.models = models
        self._device = pick_device(device)
        given = load_base(models.base) if base is None else base
        self._given_back_to = given.unet.device
        self._base = given.to(self._device)
        self._beta_schedule: BetaSchedule = (
            "linear" if given.scheduler.config.get("beta_schedule") == "linear" else "scaled_linear"
        )
        self._image_loras = LoraStack(given.unet)
        self._video: UNetMotionModel | None = None
        self._video_loras: LoraStack | None = None
        self._notes: dict[str, str] = {}
        self._controlnets: list[Any] = []
        self.inputs: Mapping[str, Input] = {}
        self.use(models)

    def use(self, models: AnimationModels) -> None:
        """Changes to another combination on the same base model, loading only what is new.

        Raises:
            UserError: see the constructor; the combination in use stays.
        """
        assert models.base == self.models.base, "another base model needs another animator"
        _check_combination(models)
        inputs = inputs_of(models)
        adapter = None if models.domain_adapter is None else load_domain_adapter(models.domain_adapter.path)
        if adapter is not None:
            check_fits(adapter, self._base.unet)
        video, stack, notes = self._video, self._video_loras, self._notes
        if inputs.get("motion_module") != self.inputs.get("motion_module"):
            video, stack, notes = self._with_motion(models)
        loras = [(load_motion_lora(lora.path, notes), lora.scale) for lora in models.motion_loras]
        for lora, _ in loras:
            check_fits(lora, video)  # type: ignore[arg-type]
        controlnets = [load_controlnet(net.path, self._base).to(self._device) for net in models.controlnets]

        for each in (self._image_loras, self._video_loras, stack):
            if each is not None:
                each.clear()
        for each in (self._image_loras, stack):
            if each is not None and adapter is not None and models.domain_adapter is not None:
                each.add("domain-adapter", adapter, models.domain_adapter.scale)
        for index, (lora, scale) in enumerate(loras):
            assert stack is not None
            stack.add(f"motion-lora-{index}", lora, scale)
        self._video, self._video_loras, self._notes, self._controlnets = video, stack, notes, controlnets
        self.models, self.inputs = models, inputs

    def _with_motion(self, models: AnimationModels) -> tuple[UNetMotionModel | None, LoraStack | None, dict[str, str]]:
        if models.motion_module is None:
            return None, None, {}
        adapter, notes = load_motion_module(models.motion_module)
        group_norms: Any = notes["group_norm"], notes["image_group_norm"]
        with self._image_loras.disabled():
            video = insert_motion_module(self._base.unet, adapter, *group_norms)
        video = video.eval().requires_grad_(False).to(self._device)
        return video, LoraStack(video), notes

    def close(self) -> None:
        """Gives the base model back: its own weights, on the device they were on."""
        self._image_loras.clear()
        self._base.to(self._given_back_to)
        self._video = self._video_loras = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def frames(self, config: AnimationConfig) -> UInt8:
        """The animation, uint8 (F, H, W, 3); without a motion module, F pictures with noise of their own.

        Raises:
            UserError: more frames than the motion module has positions, a size the model cannot make, or control videos
                that are not one for each ControlNet.
        """
        height, width = self._size(config)
        self._warn_if_cut(config.prompt)
        if len(config.control_videos) != len(self._controlnets):
            raise UserError(
                f"There are {len(self._controlnets)} ControlNets and {len(config.control_videos)} control videos.",
                "Each ControlNet follows one video.",
                "Give --controlnet and --control-video equally often.",
            )
        if self._video is None:
            return self.images(config, config.frames)
        positions = self._video.config.motion_max_seq_length
        if config.frames > positions:
            raise UserError(
                f"{config.frames} frames were asked for and the motion module has {positions} positions.",
                "It has never seen a longer window and cannot tell later frames apart.",
                f"Ask for at most {positions} frames.",
            )
        generator = torch.Generator().manual_seed(config.seed)
        noise = torch.randn((1, 4, config.frames, height, width), generator=generator)
        noted: Any = self._notes["beta_schedule"]
        scheduler = self._scheduler(config.beta_schedule or noted, config)
        pipeline = video_pipeline(self._base, self._video, scheduler, self._controlnets)
        extra: dict[str, Any] = {"generator": generator, "num_frames": config.frames}
        if self._controlnets:
            extra["conditioning_frames"] = [control_pictures(video, config.frames) for video in config.control_videos]
            extra["controlnet_conditioning_scale"] = [net.scale for net in self.models.controlnets]
        with progress(config.steps, "animating", "step") as bar:
            latents = self._denoise(pipeline, config, noise, bar, **extra)
        return decode(self._base, latents[0].transpose(0, 1))

    def images(self, config: AnimationConfig, count: int) -> UInt8:
        """`count` pictures of the prompt by the image model alone, uint8 (N, H, W, 3); picture i is a function of
        (seed, i), whatever the count."""
        height, width = self._size(config)
        pipeline = image_pipeline(self._base, self._base.unet, self._scheduler(self._beta_schedule, config))
        generators = [torch.Generator().manual_seed(config.seed * 1_000_003 + i) for i in range(count)]
        noises = [torch.randn((4, height, width), generator=generator) for generator in generators]
        pictures = []
        starts = range(0, count, PICTURES_AT_ONCE)
        with progress(config.steps * len(starts), "drawing", "step") as bar:
            for start in starts:
                noise = torch.stack(noises[start : start + PICTURES_AT_ONCE])
                own = generators[start : start + PICTURES_AT_ONCE]
                latents = self._denoise(pipeline, config, noise, bar, generator=own, num_images_per_prompt=len(noise))
                pictures.append(decode(self._base, latents))
        return np.concatenate(pictures)

    def _scheduler(self, schedule: BetaSchedule, config: AnimationConfig) -> SchedulerMixin:
        return inference_scheduler(schedule, config.scheduler, prediction_type_of(self._base))

    def _denoise(self, pipeline: Any, config: AnimationConfig, noise: Tensor, bar: tqdm[Any], **extra: Any) -> Tensor:
        return denoise(
            pipeline, noise.to(self._device), config.prompt, config.negative_prompt, config.steps,
            config.guidance_scale, bar.update, **extra,
        )  # fmt: skip

    def _size(self, config: AnimationConfig) -> tuple[int, int]:
        """Height and width in latents."""
        factor = self._base.vae_scale_factor
        own = int(self._base.unet.config.sample_size) * factor
        height, width = config.height or own, config.width or own
        if height % 8 or width % 8 or min(height, width) < 8 * factor:
            raise UserError(
                f"{width}x{height} pixels is not a size that the model can make.",
                f"Both sides must be multiples of 8 and at least {8 * factor}.",
                f"The model's own size is {own}x{own}.",
            )
        return height // factor, width // factor

    def _warn_if_cut(self, prompt: str) -> None:
        tokenizer = self._base.tokenizer
        with quiet():
            length = len(tokenizer(self._base.maybe_convert_prompt(prompt, tokenizer))["input_ids"])
        if length > tokenizer.model_max_length:
            log.warning("The prompt has %d tokens and the model reads %d.", length, tokenizer.model_max_length)


def _check_combination(models: AnimationModels) -> None:
    """
    Raises:
        UserError: weights that do nothing without a motion module were given without one.
    """
    for given, what in ((models.motion_loras, "A MotionLoRA"), (models.controlnets, "A ControlNet")):
        if given and models.motion_module is None:
            raise UserError(
                f"{what} was given without a motion module.",
                "It works on the video model, and does nothing alone.",
                "Add --motion-module.",
            )
