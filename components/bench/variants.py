"""The ways of training that the bench compares, each timed for some seconds in this process.

B clips, F frames, C channels, H W pixels, h w latents, L D text. Everything is in memory when the clock starts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from components.base.caption_encoder import CaptionEncoder
from components.bench.models import CLIPS, WARM, Case, ClipsInMemory, config_of, task_for
from components.train import step as train_step
from components.train.batch import ClipBatch
from components.train.loop import trainer
from components.train.report.log import StepReport
from components.train.report.meter import peak_gib, reset_peak
from components.train.step import Process, Stepper, Task
from infra import runtime

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Figures = dict[str, Any]
Built = tuple["StableDiffusionPipeline", Task, ClipsInMemory]
"""What `task_for` makes."""


def ours(case: Case, device: torch.device, seconds: float, built: Built | None = None) -> Figures:
    """The trainer's whole loop, without the trick that the case undoes."""
    config = config_of(case, device)
    seen: list[tuple[float, StepReport]] = []

    class Enough(Exception):
        pass

    def on_step(report: StepReport) -> None:
        if report.peak_gib is not None:  # the device was waited for
            seen.append((time.perf_counter(), report))
            if seen[-1][0] - seen[0][0] > seconds:
                raise Enough

    with (
        tempfile.TemporaryDirectory() as folder,
        _without(case, device, built or task_for(case, device)) as (task, source),
        suppress(Enough),
    ):
        trainer.train(config, task, source, Path(folder), on_step)
    (began, first), (ended, last) = seen[0], seen[-1]
    rate = (last.step - first.step) * case.clips / (ended - began)
    return {
        "rate": rate,
        "mfu": None if last.mfu is None else last.mfu * rate / last.samples_per_second,
        "peak_gib": last.peak_gib,
        "predicted_gib": last.predicted_gib,
    }


@contextmanager
def _without(case: Case, device: torch.device, built: Built) -> Iterator[tuple[Task, ClipsInMemory]]:
    """Ours without one trick, as a trainer that does not know it would go about it."""
    pipeline, task, source = built

    def encode(captions: Sequence[str]) -> Tensor:
        return CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, device)(captions)

    if case.undo == "cached latents":
        yield task, _Encoding(case, pipeline, device)
    elif case.undo == "cached text":
        yield replace(task, text=encode), source
    elif case.undo == "kept memory":
        with mock.patch.object(runtime, "keep_freed_memory", return_value=None):
            yield task, source
    elif case.undo == "bf16 frozen weights":
        with mock.patch.object(train_step, "store_frozen_in_bf16", return_value=None):
            yield task, source
    else:
        yield task, source


class _Encoding(ClipsInMemory):
    """Clips as pixels, encoded batch by batch."""

    def __init__(self, case: Case, pipeline: StableDiffusionPipeline, device: torch.device) -> None:
        super().__init__(case, pipeline.vae_scale_factor)
        self._vae, self._device = pipeline.vae.to(device), device
        self._pixels = _random_pixels(case)

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        for batch in super().batches(batch_size, frames, seed, start_step):
            pixels = self._pixels[[int(name) for name in batch.clip_ids], :frames].to(self._device)
            with torch.no_grad():
                means = self._vae.encode(pixels.flatten(0, 1)).latent_dist.mean
            yield replace(batch, latents_BCFhw=means.unflatten(0, pixels.shape[:2]).transpose(1, 2))


def limit(case: Case, device: torch.device, seconds: float) -> Figures:
    """The model as the trainer has prepared it, on one batch, without losses or updates."""
    runtime.keep_freed_memory()
    _, task, source = task_for(case, device)
    stepper = Stepper(config_of(case, device), task, Process(device))
    return limit_of(case, device, seconds, task, source, stepper.autocast)


def limit_of(
    case: Case, device: torch.device, seconds: float, task: Task, source: ClipsInMemory, autocast: bool
) -> Figures:
    """As `limit`, of a task that a trainer has prepared already."""
    z_t = torch.randn(case.clips, 4, task.frames, *source.latent_size, device=device)
    t = torch.arange(case.clips, device=device)
    text = task.text([source.captions[i % CLIPS] for i in range(case.clips)])
    predict, parameters = task.predictor(task.unet), list(task.trainable.values())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            answer = predict(z_t, t, text)
        answer.float().square().mean().backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None

    return _timed(step, case, device, seconds)


def plain(case: Case, device: torch.device, seconds: float, half: bool = True) -> Figures:
    """The official step, in its order and in its autocast, with nothing of this package but the network, and diffusers'
    own attention in that."""
    from diffusers import DDIMScheduler
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    pipeline, task, source = task_for(case, device)
    unet, vae, text_encoder, tokenizer = task.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    for part in (unet, vae, text_encoder):
        part.to(device)
    unet.train()
    for part in unet.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor2_0())
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="linear")
    optimizer = torch.optim.AdamW(task.trainable.values(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    pixels = _random_pixels(case)[:, : task.frames]
    done = 0

    def step() -> None:
        nonlocal done
        index = [(done + i) % CLIPS for i in range(case.clips)]
        done += case.clips
        batch, captions = pixels[index].to(device), [source.captions[i] for i in index]
        with torch.no_grad():
            latents = vae.encode(batch.flatten(0, 1)).latent_dist.sample()
            latents = latents.unflatten(0, batch.shape[:2]).transpose(1, 2) * task.latent_scale
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (len(latents),), device=device)
        noisy = scheduler.add_noise(latents, noise, t)
        with torch.no_grad():
            ids = tokenizer(
                captions, max_length=tokenizer.model_max_length, padding="max_length", truncation=True,
                return_tensors="pt",
            ).input_ids.to(device)  # fmt: skip
            states = text_encoder(ids)[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            predicted = task.predictor(unet)(noisy, t, states)
            loss = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="mean")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        loss.detach().item()

    return _timed(step, case, device, seconds)


VARIANTS: dict[str, Callable[[Case, torch.device, float], Figures]] = {
    "ours": ours, "limit": limit, "plain": plain, "plain fp32": partial(plain, half=False)
}  # fmt: skip


def _random_pixels(case: Case) -> Tensor:
    """(clips, F, 3, H, W), float -1..1, on the CPU."""
    shape = (CLIPS, case.frames, 3, case.size, case.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def _timed(step: Callable[[], None], case: Case, device: torch.device, seconds: float) -> Figures:
    def finish() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    reset_peak(device)
    for _ in range(WARM):
        step()
    began, done = finish(), 0
    while True:
        for _ in range(WARM):
            step()
        done += WARM * case.clips
        ended = finish()
        if ended - began > seconds:
            return {"rate": done / (ended - began), "peak_gib": peak_gib(device)}
