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

from components.animate.config import AnimationConfig, AnimationModels, Precision, inputs_of, resolve_precision
from components.animate.control import control_pictures, load_controlnet
from components.base.model import load_base, prediction_type_of
from components.diffusion.noise import BetaSchedule, inference_scheduler
from components.diffusion.sampling import decode, denoise, image_pipeline, video_pipeline
from components.lora.domain_adapter import load_domain_adapter
from components.lora.motion_lora import load_motion_lora
from components.lora.stack import LoraStack, check_fits
from components.motion.files import load_motion_module
from components.motion.module import insert_motion_module, share_image_weights
from infra.artifacts.artifacts import Input
from infra.errors import TransientError, UserError, WorkError
from infra.logs import get_logger, progress
from infra.memory import free_memory, is_out_of_memory, memory_of
from infra.quiet import quiet
from infra.runtime import pick_device
from infra.video import UInt8

if TYPE_CHECKING:
    from diffusers import SchedulerMixin, StableDiffusionPipeline, UNetMotionModel
    from tqdm import tqdm

PICTURES_AT_ONCE = 16
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
log = get_logger("components")


class Animator:
    """Loads the models once and animates any number of prompts, and any number of combinations on one base model.

    A base pipeline that is passed in is used and given back by `close` (or the end of a `with` block) as it was.
    """

    def __init__(
        self,
        models: AnimationModels,
        device: str = "auto",
        precision: Precision = "auto",
        base: StableDiffusionPipeline | None = None,
    ) -> None:
        """`base` is `models.base` already loaded, to spare loading it again; it is converted to the precision.

        Raises:
            UserError: a file is missing, of another kind, or does not fit the others.
        """
        _check_combination(models)
        self.models = models
        self._device = pick_device(device)
        given = load_base(models.base) if base is None else base
        self._given_back_to = given.unet.device, given.unet.dtype
        self.precision = resolve_precision(precision, device)
        self._dtype = DTYPES[self.precision]
        if self._device.type == "cuda" and self.precision == "fp32":
            _allow_tf32()
        with quiet():  # of diffusers' remark on casts
            self._base = given.to(self._device, self._dtype)
        self._beta_schedule: BetaSchedule = (
            "linear" if given.scheduler.config.get("beta_schedule") == "linear" else "scaled_linear"
        )
        self._video: UNetMotionModel | None = None
        self._loras = LoraStack(given.unet)
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
        video, notes = self._video, self._notes
        if inputs.get("motion_module") != self.inputs.get("motion_module"):
            video, notes = self._with_motion(models)
        loras = [(load_motion_lora(lora.path, notes), lora.scale) for lora in models.motion_loras]
        for lora, _ in loras:
            check_fits(lora, video)  # type: ignore[arg-type]
        with quiet():
            controlnets = [
                load_controlnet(net.path, self._base).to(self._device, self._dtype) for net in models.controlnets
            ]

        self._loras.clear()
        self._loras = LoraStack(video or self._base.unet)  # the video model has the layers of the image model
        if adapter is not None and models.domain_adapter is not None:
            self._loras.add("domain-adapter", adapter, models.domain_adapter.scale)
        for index, (lora, scale) in enumerate(loras):
            self._loras.add(f"motion-lora-{index}", lora, scale)
        self._video, self._notes, self._controlnets = video, notes, controlnets
        self.models, self.inputs = models, inputs

    def _with_motion(self, models: AnimationModels) -> tuple[UNetMotionModel | None, dict[str, str]]:
        if models.motion_module is None:
            return None, {}
        adapter, notes = load_motion_module(models.motion_module)
        group_norms: Any = notes["group_norm"], notes["image_group_norm"]
        video = insert_motion_module(self._base.unet, adapter, *group_norms)
        share_image_weights(video, self._base.unet)
        with quiet():
            return video.eval().requires_grad_(False).to(self._device, self._dtype), notes

    def close(self) -> None:
        """Gives the base model back: its own weights, on the device they were on."""
        self._loras.clear()
        with quiet():
            self._base.to(*self._given_back_to)
        self._video = None

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
        generator = torch.Generator().manual_seed(config.seed % 2**63)
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
        generators = [torch.Generator().manual_seed((config.seed * 1_000_003 + i) % 2**63) for i in range(count)]
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
        """The denoised latents. If memory runs out, a second attempt is made with the VAE on the CPU meanwhile.

        Raises:
            TransientError: still out of memory.
            WorkError: latents that are not finite.
        """
        generators = extra["generator"]
        states = [each.get_state() for each in (generators if isinstance(generators, list) else [generators])]
        for vae_device in (self._device, torch.device("cpu")):
            self._base.vae.to(vae_device)
            for each, state in zip(generators if isinstance(generators, list) else [generators], states, strict=True):
                each.set_state(state)
            try:
                latents = denoise(
                    pipeline, noise.to(self._device, self._dtype), config.prompt, config.negative_prompt, config.steps,
                    config.guidance_scale, bar.update, **extra,
                )  # fmt: skip
                self._base.vae.to(self._device)
                return self._checked(latents)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            free_memory()
            bar.reset()
        memory = memory_of(self._device)
        self._base.vae.to(self._device)
        raise TransientError(
            f"Out of memory while denoising {self._asked(noise)} in {self.precision}.",
            f"{memory} now.",
            "Lower animation.frames, height or width, set animation.precision=fp16, or free memory on the device.",
        )

    def _checked(self, latents: Tensor) -> Tensor:
        if not bool(torch.isfinite(latents).all()):
            raise WorkError(
                f"The latents are not finite in {self.precision}.",
                "A network has made numbers that this precision cannot hold, and the animation would be black.",
                "Set animation.precision=fp32 or bf16.",
            )
        return latents

    def _asked(self, noise: Tensor) -> str:
        factor = self._base.vae_scale_factor
        count = noise.shape[2] if noise.ndim == 5 else noise.shape[0]
        return f"{count} frames of {noise.shape[-1] * factor}x{noise.shape[-2] * factor} pixels"

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


def _allow_tf32() -> None:
    """Lets CUDA round the factors of fp32 products to TF32, ten bits of mantissa; said in the log at the first call."""
    if torch.get_float32_matmul_precision() == "highest":
        torch.set_float32_matmul_precision("high")
        log.info("fp32 products on the GPU use TF32 (ten bits of mantissa).")
