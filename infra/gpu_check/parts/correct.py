"""Whether CUDA computes what the CPU does. B clips, F frames, h w latents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from components.bench.models import Case, config_of, task_for
from components.motion import layers
from components.train.config import TrainConfig
from components.train.loop import trainer
from components.train.report.log import StepReport
from components.train.step import Process, Stepper
from infra.gpu_check.context import Context
from infra.gpu_check.rows import Row, at_most
from infra.workers import messages

FORWARD, BACKWARD, LOSSES, WEIGHTS, BF16, COMPILED = 1e-4, 1e-3, 1e-4, 1e-2, 0.02, 1e-4
"""Relative differences allowed. Two fp32 layouts on one CPU differ by 4e-7 in the losses of 20 steps, and by 2e-5 of
the way that the weights went."""
ATTENTION = {"fp32": 1e-4, "bf16": 2e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")
RESUMED_AT, RESUMED_STEPS = 3, 6


@contextmanager
def plain_fp32() -> Iterator[None]:
    """No TF32 in products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that repeat themselves, attention's among them; cuBLAS does with `worker.ENVIRONMENT`."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def motion_module(context: Context) -> Iterator[Row]:
    """Forward and backward through the whole video model, in fp32."""
    with plain_fp32():
        answer, gradients = _forward_and_backward(context, CPU)
        answer_there, gradients_there = _forward_and_backward(context, context.device)
    yield at_most(FORWARD, "motion module: forward, relative difference", difference([answer_there], [answer]))
    yield at_most(BACKWARD, "motion module: gradients, relative difference", difference(gradients_there, gradients))


def _forward_and_backward(context: Context, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Answer and gradients, of a module whose outputs are not zero."""
    case = _case(context, "motion-module")
    _, task, source = task_for(case, device)
    generator, parameters = torch.Generator().manual_seed(0), list(task.trainable.values())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    z_t = torch.randn((case.clips, 4, case.frames, *source.latent_size), generator=generator)
    t = torch.arange(case.clips, device=device) * 100
    answer = task.predictor(task.unet.to(device))(z_t.to(device), t, task.text(source.captions[: case.clips]))
    answer.square().mean().backward()  # type: ignore[no-untyped-call]
    return answer.detach(), [_gradient(parameter) for parameter in parameters]


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def stage(context: Context, name: str) -> Iterator[Row]:
    """The same steps here and there: fp32 against fp32, and bf16 against that."""
    case, steps = _case(context, name), context.sizes.exact_steps
    with plain_fp32():
        losses, weights, start = _trained(case, CPU, steps, precision="fp32", channels_last=False)
        losses_there, weights_there, _ = _trained(case, context.device, steps, precision="fp32")
        apart = max(abs(there - here) / here for there, here in zip(losses_there, losses, strict=True))
        yield at_most(LOSSES, f"{name}: losses of {steps} steps, largest relative difference", apart)
        moved = [after - before for after, before in zip(weights, start, strict=True)]
        moved_there = [after - before for after, before in zip(weights_there, start, strict=True)]
        what = f"{name}: weights after {steps} steps, difference of their way"
        yield at_most(WEIGHTS, what, difference(moved_there, moved))
    half, _, _ = _trained(case, context.device, steps, precision="bf16")
    what = f"{name}: bf16 loss of {steps} steps against fp32"
    yield at_most(BF16, what, abs(sum(half) / sum(losses) - 1))


def compiled(context: Context) -> Iterator[Row]:
    """The trainer's compiled blocks, in fp32."""
    case, steps = _case(context, "motion-module"), 3
    with plain_fp32():
        eager, _, _ = _trained(case, context.device, steps, precision="fp32")
        fast, _, _ = _trained(case, context.device, steps, precision="fp32", compile=True)
    torch._dynamo.reset()
    apart = max(abs(there - here) / here for there, here in zip(fast, eager, strict=True))
    yield at_most(COMPILED, f"compiled: losses of {steps} steps against eager, largest relative difference", apart)


def _trained(
    case: Case, device: torch.device, steps: int, **changes: object
) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """Losses, and the weights after and before, on the CPU."""
    _, task, source = task_for(case, device)
    start = [parameter.detach().to("cpu", copy=True) for parameter in task.trainable.values()]
    config = config_of(case, device).replace(steps=steps, **changes)
    stepper = Stepper(config, task, Process(device))
    batches = source.batches(case.clips, task.frames, config.seed)
    losses = [float(stepper.step(number, [next(batches)])) for number in range(steps)]
    return losses, [parameter.detach().cpu() for parameter in task.trainable.values()], start


def resume(context: Context) -> Iterator[Row]:
    """A run that was stopped and went on against one that was not, and against itself, in the training's precision."""
    case = _case(context, "motion-module")
    config = config_of(case, context.device).replace(steps=RESUMED_STEPS, ema_decay=0.9)
    with deterministic():
        whole, again = (_run(config, case, context.device, None) for _ in range(2))
        resumed = _run(config, case, context.device, RESUMED_AT)
    for what, other in (("run twice", again), (f"stopped at step {RESUMED_AT} and resumed", resumed)):
        differ = [name for name in whole if not torch.equal(whole[name], other[name])]
        apart = difference(list(other.values()), list(whole.values()))
        note = f"relative difference {apart:.2g}" if differ else ""
        yield at_most(0, f"{what}: tensors of {len(whole)} that differ in a bit", len(differ), note=note)


def _run(config: TrainConfig, case: Case, device: torch.device, stop_at: int | None) -> dict[str, Tensor]:
    """The weights that would be saved."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def on_step(report: StepReport) -> None:
            if report.step == stop_at:
                messages.open_mailbox(folder)
                messages.request_stop(folder, "the check")

        def train() -> dict[str, Tensor]:
            _, task, source = task_for(case, device)
            return trainer.train(config, task, source, folder, on_step).weights

        if stop_at is not None:
            with suppress(trainer.TrainingStoppedError):
                train()
            messages.remove_mailbox(folder)
        return train()


def attention(context: Context, kind: str) -> Iterator[Row]:
    """Temporal attention of more windows than a kernel's grid is long, against the CPU's plain products where its parts
    meet; and whether one call could take them."""
    from diffusers.models.attention_processor import Attention

    device, limit, width = context.device, context.sizes.windows_max, context.sizes.window_width
    torch.manual_seed(0)
    layer = Attention(query_dim=width, heads=8, dim_head=width // 8, processor=layers.TemporalAttention())
    layer = layer.to(device, DTYPES[kind])
    windows = torch.randn(limit + 65, context.sizes.frames, width, device=device, dtype=DTYPES[kind])
    wanted = torch.randn_like(windows)
    windows.requires_grad_()
    with plain_fp32(), mock.patch.object(layers, "CUDA_BATCH_MAX", limit):
        answer = layer(windows)
        answer.backward(wanted)
        assert windows.grad is not None
        some = [0, len(windows) // 2 - 1, len(windows) // 2, len(windows) // 2 + 1, limit - 1, limit, len(windows) - 1]
        here = layer.to(CPU, torch.float32)
        windows_here = windows.detach()[some].cpu().float().requires_grad_()
        answer_here = here(windows_here)
        answer_here.backward(wanted[some].cpu().float())
    assert windows_here.grad is not None
    what = f"attention {kind}, {len(windows):,} windows"
    yield at_most(ATTENTION[kind], f"{what}: forward, relative difference", difference([answer[some]], [answer_here]))
    there, known = [windows.grad[some]], [windows_here.grad]
    yield at_most(ATTENTION[kind], f"{what}: gradients, relative difference", difference(there, known))
    del answer, wanted
    yield Row(f"{what}: in one call", _in_one_call(windows.detach()))


def _in_one_call(windows: Tensor) -> str:
    q = windows.unflatten(2, (8, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    try:
        answer = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return "works" if bool(torch.isfinite(answer).all()) else "wrong"
    except RuntimeError as error:
        return f"refused: {str(error).splitlines()[0]}"


def difference(found: Sequence[Tensor], known: Sequence[Tensor]) -> float:
    """‖found − known‖ / ‖known‖ over all tensors, in double precision on the CPU."""
    there, here = ([each.detach().double().cpu() for each in tensors] for tensors in (found, known))
    apart = sum(float((one - other).square().sum()) for one, other in zip(there, here, strict=True))
    size = sum(float(other.square().sum()) for other in here)
    return float((apart / size) ** 0.5) if size else float(apart > 0)


def _case(context: Context, stage: str) -> Case:
    sizes = context.sizes
    frames = 1 if stage == "domain-adapter" else sizes.exact_frames
    return Case(sizes.exact_model, stage, sizes.exact_clips, frames, sizes.exact_size)
