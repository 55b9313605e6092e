"""One optimizer step, the same for all stages, without a synchronisation of host and device.

B batch, F frames, C channels, h w latents, L D text. A step with a non-finite loss or gradient
changes no weight: AdamW's fused kernel reads the flag on the device, so the host does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from components.base.caption_encoder import check_embeddings
from components.diffusion.noise import Prediction, alpha_bars
from components.diffusion.objective import Predict, draw, prediction_errors, weighted_mean
from components.train.activation_checkpointing import Checkpointing, checkpoint_activations
from components.train.batch import ClipBatch
from components.train.config import TrainConfig, learning_rate_at
from components.train.estimate import GIB, Kind, Memory, Shape, least_that_fits, memory, on_meta, step_flops
from infra.errors import UserError
from infra.logs import get_logger
from infra.video import UInt8

Draw = Callable[[str, Tensor], UInt8]
log = get_logger("components")


@dataclass(frozen=True)
class Task:
    """What one stage trains: `trainable` parameters by their names in the weight file, all others frozen."""

    title: str
    unet: nn.Module
    predictor: Callable[[nn.Module], Predict]
    """Maps the model, possibly wrapped for DDP, to its prediction: `objective.video_predictor` or `image_predictor`."""
    trainable: dict[str, nn.Parameter]
    text: Callable[[Sequence[str]], Tensor]
    """Captions to text states (B, L, D)."""
    latent_scale: float
    """The VAE's scaling factor; the cache holds unscaled latents."""
    frames: int
    latent_size: tuple[int, int]
    """Height and width."""
    prediction: Prediction = "epsilon"
    """What the base model predicts."""
    draw: Draw | None = None
    """A prompt, and noise (1, C, F, h, w) on the model's device, to pictures uint8 (F, H, W, 3); the model draws as it
    is at that moment."""


@dataclass(frozen=True)
class Process:
    """The device and rank of this process, one of `world_size` processes that share every batch."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


class Stepper:
    """Model, optimizer and EMA of the weights; `step` updates them."""

    def __init__(self, config: TrainConfig, task: Task, process: Process) -> None:
        self.config, self.task, self.process = config, task, process
        device = process.device
        self.autocast = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self.kind: Kind = "cuda bf16" if self.autocast else "cuda fp32"
        if device.type == "cpu":
            self.kind = "cpu bf16" if self.autocast else "cpu fp32"
        self.alpha_bar = alpha_bars(config.beta_schedule).to(device)
        self.flops_per_sample = step_flops(on_meta(task.unet), self.shape(1), predict=task.predictor)
        self.checkpointing, self.predicted = self._choose_checkpointing()
        checkpoint_activations(task.unet, self.checkpointing)
        _prepare(config, task, device, self.autocast)
        self.parameters = list(task.trainable.values())
        self.optimizer = _optimizer(config, self.parameters)
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema_decay is not None else None
        self._embeddings_checked = False
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._wrapped: Any = task.unet
        if process.world_size > 1:
            self._wrapped = nn.parallel.DistributedDataParallel(
                task.unet, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.predict = task.predictor(self._wrapped)

    def step(self, number: int, batches: Sequence[ClipBatch]) -> Tensor:
        """One step on this rank's parts of the batches; returns the mean loss of all ranks, on the device. A step with
        a non-finite loss or gradient is counted in `skipped` and changes nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.config, number)
        total = torch.zeros((), device=self.process.device)
        for part, batch in enumerate(batches):
            last = part == len(batches) - 1
            with nullcontext() if last or self.process.world_size == 1 else self._wrapped.no_sync():
                loss = self._loss(batch, number * len(batches) + part) / len(batches)
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if self.process.world_size > 1:
            torch.distributed.all_reduce(total)
            total /= self.process.world_size
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        nonfinite = ~(torch.isfinite(norm) & torch.isfinite(total))
        self.skipped += nonfinite
        if self.config.optimizer == "adamw":
            self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(nonfinite):
            self.optimizer.step()
        self._average(number)
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def errors(self, batch: ClipBatch, captions: Sequence[str] | None, eps_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        """Squared errors (B,) of the model with its present weights; `captions` replace those of the batch."""
        device = self.process.device
        z_0 = _to_device(batch.latents_BCFhw, device).float() * self.task.latent_scale
        text = self._text(batch, batch.captions if captions is None else captions)
        with self.precision():
            return prediction_errors(
                self.predict, z_0, text, _to_device(eps_BCFhw, device), t_B, self.alpha_bar, self.task.prediction
            )

    def _text(self, batch: ClipBatch, captions: Sequence[str]) -> Tensor:
        """States of `captions` (B, L, D): the batch's own where it has them and the caption was not dropped."""
        cached = batch.caption_embeddings_BLD
        if cached is None:
            return self.task.text(captions)
        if not self._embeddings_checked:
            check_embeddings(batch.captions[0], cached[0], self.task.text(batch.captions[:1])[0])
            self._embeddings_checked = True
        states = _to_device(cached, self.process.device).float()
        dropped = [i for i, (now, own) in enumerate(zip(captions, batch.captions, strict=True)) if now != own]
        if dropped:
            states = states.clone()
            states[dropped] = self.task.text([captions[i] for i in dropped])
        return states

    def precision(self) -> torch.autocast:
        """The autocast of the forward pass."""
        return torch.autocast(self.process.device.type, torch.bfloat16, enabled=self.autocast)

    def shape(self, clips: int) -> Shape:
        """The shape of a micro-batch of so many clips."""
        return Shape(clips, self.task.frames, *self.task.latent_size, *self.task.text([""]).shape[1:])

    def _choose_checkpointing(self) -> tuple[Checkpointing, Memory]:
        """The mode of the config, or for `auto` the one that recomputes least and fits; and its predicted memory."""
        config, task = self.config, self.task
        shape = self.shape(config.batch_size // self.process.world_size)
        averages, moments = config.ema_decay is not None, 1 if config.optimizer == "adamw-8bit" else 4

        needed = memory(on_meta(task.unet), shape, averages, moments, self.kind, task.predictor)
        if config.activation_checkpointing != "auto":
            return config.activation_checkpointing, needed[config.activation_checkpointing]
        room = _room(self.process.device)
        mode, found = least_that_fits(room, needed)
        if mode is None:
            log.warning(
                "%s needs about %.1f GiB with everything recomputed, and %.1f GiB are free: lower train.batch_size, "
                "and raise train.gradient_accumulation as much.", task.title, found.total / GIB, room / GIB,
            )  # fmt: skip
        log.info("activation_checkpointing: %s (%.1f of %.1f GiB)", mode or "full", found.total / GIB, room / GIB)
        return mode or "full", found

    def samples(self, batch_number: int, count: int) -> range:
        """Sample numbers of this rank's part of a batch."""
        first = batch_number * self.config.batch_size + self.process.rank * count
        return range(first, first + count)

    def _loss(self, batch: ClipBatch, batch_number: int) -> Tensor:
        count, config = len(batch.captions), self.config
        strata = config.batch_size if config.stratified_timesteps else None
        draws = draw(
            self.samples(batch_number, count), batch.latents_BCFhw.shape[1:], config.seed,
            config.caption_dropout, config.offset_noise, strata,
        )  # fmt: skip
        captions = ["" if drop else text for text, drop in zip(batch.captions, draws.drop_B.tolist(), strict=True)]
        t_B = _to_device(draws.t_B, self.process.device)
        errors = self.errors(batch, captions, draws.eps_BCFhw, t_B)
        weights = (config.min_snr_gamma, self.task.prediction, config.noisy_weight_max)
        return weighted_mean(errors, t_B, self.alpha_bar, *weights)

    def _average(self, number: int) -> None:
        if self.ema is not None and self.config.ema_decay is not None:
            decay = min(self.config.ema_decay, (1 + number) / (10 + number))
            torch._foreach_lerp_(self.ema, [parameter.detach() for parameter in self.parameters], 1 - decay)

    def set_parameters(self, values: Sequence[Tensor]) -> None:
        """Sets the trained parameters to `values`."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, from pinned memory on CUDA, so that the host does not wait for it."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _room(device: torch.device) -> float:
    """Bytes that a training may take; on the CPU, those that the process has already are part of it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def _prepare(config: TrainConfig, task: Task, device: torch.device, autocast: bool) -> None:
    """The model on its device, in the memory format and precision that the config asks for."""
    if autocast and device.type == "cuda":
        store_frozen_in_bf16(task)
    task.unet.to(device).train()
    if config.channels_last:
        for each in (*task.unet.parameters(), *task.unet.buffers()):
            if each.ndim == 4:  # a temporal convolution's five dimensions have no such format
                each.data = each.data.contiguous(memory_format=torch.channels_last)
    if config.compile:
        from diffusers.models.resnet import ResnetBlock2D
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        from components.motion.module import temporal_modules

        blocks = [part for part in task.unet.modules() if isinstance(part, (ResnetBlock2D, Transformer2DModel))]
        # Blocks of one class share a code object, which is compiled once for each shape.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for block in (*blocks, *temporal_modules(task.unet).values()):
            block.compile(dynamic=False)


def store_frozen_in_bf16(task: Task) -> None:
    """Half the memory, and no copies by autocast. Norms stay in fp32, in which autocast computes them; the weights and
    biases of other layers it would round to bf16 at every use."""
    keep = {id(parameter) for parameter in task.trainable.values()}
    norms = [part for part in task.unet.modules() if isinstance(part, nn.GroupNorm | nn.LayerNorm)]
    keep |= {id(parameter) for norm in norms for parameter in norm.parameters()}
    for parameter in task.unet.parameters():
        if id(parameter) not in keep:
            parameter.data = parameter.data.to(torch.bfloat16)


def _optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """
    Raises:
        UserError: 8-bit moments without bitsandbytes.
    """
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            "The optimizer adamw-8bit needs bitsandbytes, which is not installed.",
            "It keeps the optimizer's moments in a byte each.",
            "Run `uv pip install bitsandbytes` on a machine with CUDA, or set train.optimizer=adamw.",
        ) from None
    made: torch.optim.Optimizer = AdamW8bit(
        parameters, config.learning_rate, config.betas, weight_decay=config.weight_decay
    )
    return made
