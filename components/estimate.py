"""What a training step costs, counted on tensors without memory: FLOPs, and bytes by part.

Everything is read off the operations that torch would run, on CUDA in bf16 autocast, none of which runs. Activations
are what autograd keeps for going backward; kernels' workspaces, the allocator's slack and the CUDA context come on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.checkpointing import Checkpointing, checkpoint_activations
from components.objective import Predict, image_predictor, video_predictor

GIB = 1 << 30
CUDA_CONTEXT = 2.5 * GIB
"""Context, workspaces and slack of a process that trains, roughly."""


@dataclass(frozen=True)
class Shape:
    """One micro-batch: clips, frames of each, height and width of its latents, and of its text states."""

    clips: int
    frames: int
    height: int
    width: int
    text_length: int = 77
    text_width: int = 768


class _Flash(torch.autograd.Function):
    """What flash attention keeps: q, k, v, the answer, and a number for each row. Computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        answer = torch.empty_like(query)
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, answer, rows)
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """CUDA's autocast rules on a machine without CUDA, and attention that keeps what flash attention keeps."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        half = [each.to(torch.bfloat16) for each in (query, key, value)]
        return cast(Tensor, _Flash.apply(*half))

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    plain = F.scaled_dot_product_attention
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def saved_activation_bytes(unet: nn.Module, shape: Shape, mode: Checkpointing) -> int:
    """Bytes that autograd keeps of one forward pass of a model on the meta device, whose parameters that learn are
    marked by `requires_grad`. The model is used up: its parameters become fake ones, its layers recompute."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        _to_fake(unet)
        checkpoint_activations(unet, mode)
        unet.train()
        parameters = {each.untyped_storage()._cdata for each in (*unet.parameters(), *unet.buffers())}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()._cdata
            if storage not in parameters:
                kept[storage] = tensor  # held, so that no other storage takes its place
            return tensor

        inputs = _inputs(shape, "cuda")
        with _as_on_cuda(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _predictor(unet)(*inputs)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def step_flops(unet: nn.Module, shape: Shape, mode: Checkpointing = "none") -> int:
    """FLOPs of one forward and backward pass of a model on the meta device, what is recomputed included."""
    from torch.utils.flop_counter import FlopCounterMode

    checkpoint_activations(unet, mode)
    unet.train()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        _predictor(unet)(*_inputs(shape, "meta")).sum().backward()  # type: ignore[no-untyped-call]
    unet.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory(unet: nn.Module, shape: Shape, mode: Checkpointing, ema: bool, moment_bytes: int = 4) -> Memory:
    """GPU memory of a training step by part; the model is on the meta device, and used up."""
    learns = sum(each.numel() for each in unet.parameters() if each.requires_grad)
    frozen = sum(each.numel() for each in unet.parameters() if not each.requires_grad)
    parts = {
        "frozen weights, bf16": 2 * frozen,
        "trained weights, fp32": 4 * learns,
        "their bf16 copies": 2 * learns,
        "gradients, fp32": 4 * learns,
        "AdamW's moments": 2 * moment_bytes * learns,
        "averaged weights, fp32": 4 * learns if ema else 0,
        "activations": saved_activation_bytes(unet, shape, mode),
        "CUDA context and slack": int(CUDA_CONTEXT),
    }
    return Memory(parts)


def _predictor(unet: nn.Module) -> Predict:
    return video_predictor(unet) if type(unet).__name__ == "UNetMotionModel" else image_predictor(unet)


def _inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    with torch.device(device):
        z_t = torch.empty(shape.clips, 4, shape.frames, shape.height, shape.width)
        t = torch.zeros(shape.clips, dtype=torch.long)
        return z_t, t, torch.empty(shape.clips, shape.text_length, shape.text_width)


def _to_fake(unet: nn.Module) -> None:
    """bf16 on a CUDA device that need not be there; a learning weight's own bf16 copy is counted by `memory`."""
    for module in unet.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda")
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
