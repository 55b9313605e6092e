"""How fast a training steps: `make bench-train`.

Three ways on one machine, in one run, over the same models and the same clips: this package's trainer; a plain
restatement of the official train.py (guoyww/AnimateDiff), which encodes pixels and text in every step, keeps frozen
weights in fp32 under bf16 autocast and looks at each loss; and the bare UNet, forward and backward, which is the limit.
Each way has a process of its own, and they take turns. Everything is in memory when the clock starts.

B clips, F frames, C channels, H W pixels, h w latents, L D text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from components.base.caption_encoder import CaptionEncoder
from components.bench.models import CLIPS, TRICKS, WARM, Case, ClipsInMemory, config_of, task_for
from components.train import step as train_step
from components.train.batch import ClipBatch
from components.train.loop import trainer
from components.train.report.log import StepReport
from components.train.step import Place, Stepper, Task
from infra import runtime

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

SECONDS = 8.0
ON_CPU = (
    Case("pocket", "motion-module", 4, 16, 64),
    Case("pocket", "motion-module", 4, 16, 64, compile=True),
    Case("pocket", "motion-lora", 4, 16, 64),
    Case("pocket", "domain-adapter", 16, 1, 64),
)
ON_GPU = (
    Case("sd15", "motion-module", 8, 16, 256),
    Case("sd15", "motion-lora", 8, 16, 256),
    Case("sd15", "domain-adapter", 64, 1, 256),
    Case("sd15", "motion-module", 8, 16, 256, compile=True),
    Case("sd15", "motion-module", 32, 16, 256, "full"),
    Case("sd15", "motion-module", 1, 16, 256),
)


def main() -> None:
    """Measures and prints a table; `--json FILE` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="each way has so many turns, and the best is told")
    parser.add_argument("--tricks", action="store_true", help="instead, the first case with one trick undone at a time")
    parser.add_argument("--json", type=Path)
    example = json.dumps(vars(Case("sd15", "motion-module", 1, 16, 64)))
    parser.add_argument("--case", help=f"a case as JSON instead of the table's, such as '{example}'")
    parser.add_argument("--way", choices=sorted(WAYS), help="only this, in this process")
    options = parser.parse_args()
    runtime.quiet_environment()
    device = runtime.pick_device()
    cases: tuple[Case, ...] = ON_GPU if device.type == "cuda" else ON_CPU
    if options.case:
        cases = (Case(**json.loads(options.case)),)
    if options.way:
        print(json.dumps(WAYS[options.way](cases[0], device)))
        return
    if options.tricks:
        _tricks(cases[0], options.repeats)
        return
    results = []
    for case in cases:
        results.append({**vars(case), "device": _name(device), **_measure(case, options.repeats)})
        print(_lines(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measure(case: Case, repeats: int) -> dict[str, Any]:
    """The best of each way's turns."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, told in turns.items():
            told.append(_in_a_process(way, case))
    best = {way: max(told, key=lambda each: each["rate"]) for way, told in turns.items()}
    return best | {"all": {way: [each["rate"] for each in told] for way, told in turns.items()}}


def _tricks(case: Case, repeats: int) -> None:
    """Prints ours, and ours without each trick, in turns; the best of each."""
    rates: dict[str, list[float]] = {name: [] for name in ("", *TRICKS)}
    for _ in range(repeats):
        for name, found in rates.items():
            found.append(_in_a_process("ours", replace(case, undo=name))["rate"])
    whole = max(rates.pop(""))
    print(f"{case.model}, {case.stage}: {whole:.2f} samples/s")
    for name, found in rates.items():
        print(f"  without {name:<20} {max(found):9.2f}; it gives {whole / max(found):.2f} times")


def _in_a_process(way: str, case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "components.bench.bench", "--way", way, "--case", json.dumps(vars(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} of {case} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _lines(result: dict[str, Any]) -> str:
    ours, limit, plain, exact = (result[way] for way in WAYS)
    mfu = "" if ours["mfu"] is None else f", {ours['mfu']:.0%} of the measured matmul rate"
    rows = [
        f"{result['model']}, {result['stage']}, {result['clips']} clips of {result['frames']} frames at "
        f"{result['size']} px on {result['device']}, {result['checkpointing']} recomputed"
        f"{', compiled' if result['compile'] else ''}:",
        f"  ours   {ours['rate']:9.2f} samples/s, peak {ours['peak_gib']:.2f} GiB of {ours['predicted_gib']:.2f} "
        f"predicted{mfu}",
        *(
            f"  {name}  {found['rate']:9.2f} samples/s{but}; ours is {ours['rate'] / found['rate']:.2f} of it"
            for name, found, but in (
                ("limit", limit, ""),
                ("plain", plain, ""),
                ("plain", exact, " without its autocast"),
            )
        ),
    ]
    return "\n".join(rows)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


class _Encoding(ClipsInMemory):
    """Clips as pixels, encoded batch by batch."""

    def __init__(self, case: Case, pipeline: StableDiffusionPipeline, device: torch.device) -> None:
        super().__init__(case, pipeline.vae_scale_factor)
        self._vae, self._device = pipeline.vae.to(device), device
        self._pixels = torch.randn(CLIPS, case.frames, 3, case.size, case.size).clamp(-1, 1)

    def batches(
        self, batch_size: int, frames: int, seed: int, start_step: int = 0, rank: int = 0, world_size: int = 1
    ) -> Iterator[ClipBatch]:
        for batch in super().batches(batch_size, frames, seed, start_step):
            pixels = self._pixels[[int(name) for name in batch.clip_ids], :frames].to(self._device)
            with torch.no_grad():
                means = self._vae.encode(pixels.flatten(0, 1)).latent_dist.mean
            yield replace(batch, latents_BCFhw=means.unflatten(0, pixels.shape[:2]).transpose(1, 2))


def _ours(case: Case, device: torch.device) -> dict[str, Any]:
    pipeline, task, source = task_for(case, device)
    config = config_of(case, device)
    source, task = _without(case, device, pipeline, task, source)
    seen: list[tuple[float, StepReport]] = []

    class Enough(Exception):
        pass

    def on_step(report: StepReport) -> None:
        if report.peak_gib is not None:  # the device was waited for
            seen.append((time.perf_counter(), report))
            if seen[-1][0] - seen[0][0] > SECONDS:
                raise Enough

    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        trainer.train(config, task, source, Path(folder), on_step)
    (began, first), (ended, last) = seen[0], seen[-1]
    rate = (last.step - first.step) * case.clips / (ended - began)
    return {
        "rate": rate,
        "mfu": None if last.mfu is None else last.mfu * rate / last.samples_per_second,
        "peak_gib": last.peak_gib,
        "predicted_gib": last.predicted_gib,
    }


def _without(
    case: Case, device: torch.device, pipeline: StableDiffusionPipeline, task: Task, source: ClipsInMemory
) -> tuple[ClipsInMemory, Task]:
    """Ours without one trick, as a trainer that does not know it would go about it."""
    if case.undo == "cached latents":
        return _Encoding(case, pipeline, device), task
    if case.undo == "cached text":

        def encode(captions: Sequence[str]) -> Tensor:
            return CaptionEncoder(pipeline.tokenizer, pipeline.text_encoder, device)(captions)

        return source, replace(task, text=encode)
    if case.undo == "kept memory":
        runtime.keep_freed_memory = lambda: None
    if case.undo == "bf16 frozen weights":
        train_step.store_frozen_in_bf16 = lambda *_: None
    return source, task


def _limit(case: Case, device: torch.device) -> dict[str, Any]:
    """The model as the trainer has prepared it, on one batch, without losses or updates."""
    runtime.keep_freed_memory()
    _, task, source = task_for(case, device)
    stepper = Stepper(config_of(case, device), task, Place(device))
    z_t = torch.randn(case.clips, 4, task.frames, *source.latent_size, device=device)
    t, text = torch.arange(case.clips, device=device), task.text(source.captions[: case.clips])

    def step() -> None:
        with stepper.precision():
            answer = stepper.predict(z_t, t, text)
        answer.float().square().mean().backward()  # type: ignore[no-untyped-call]
        for parameter in stepper.parameters:
            parameter.grad = None

    return _timed(step, case, device)


def _plain(case: Case, device: torch.device, half: bool = True) -> dict[str, Any]:
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
    pixels = torch.randn(CLIPS, task.frames, 3, case.size, case.size).clamp(-1, 1)
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

    return _timed(step, case, device)


WAYS: dict[str, Callable[[Case, torch.device], dict[str, Any]]] = {
    "ours": _ours, "limit": _limit, "plain": _plain, "plain fp32": partial(_plain, half=False)
}  # fmt: skip


def _timed(step: Callable[[], None], case: Case, device: torch.device) -> dict[str, float]:
    def finish() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(WARM):
        step()
    began, done = finish(), 0
    while True:
        for _ in range(WARM):
            step()
        done += WARM * case.clips
        ended = finish()
        if ended - began > SECONDS:
            return {"rate": done / (ended - began)}


if __name__ == "__main__":
    main()
