"""What a training step costs, counted on tensors without memory: FLOPs, and bytes by part.

Counts are taken from the operations that torch would run, on CUDA in bf16 autocast by default; none of them runs.
Activations are what autograd keeps for the backward pass; kernels' workspaces, the allocator's slack and the CUDA
context come on top.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.diffusion.objective import Predict, image_predictor, video_predictor
from components.train.activation_checkpointing import MODES, Checkpointing, checkpoint_activations, recomputed_parts

GIB = 1 << 30
Kind = Literal["cuda bf16", "cuda fp32", "cpu bf16", "cpu fp32"]
"""A device, and what matrix products are computed in."""
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
    """Saves what flash attention saves for its backward pass: q, k, v, output, a number a row. Computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _as_on_cuda(half: bool) -> Iterator[None]:
    """CUDA's autocast rules on a machine without CUDA, and attention that saves what flash attention saves."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        taken = [each.to(torch.bfloat16) if half else each for each in (query, key, value)]
        return cast(Tensor, _Flash.apply(*taken))

    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    plain = F.scaled_dot_product_attention
    torch.set_autocast_enabled("cuda", half)
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


M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


def on_meta(model: M) -> M:
    """A copy on the meta device."""
    memo: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=each.requires_grad)
        for each in model.parameters()
    }
    memo |= {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    return copy.deepcopy(model, memo)


@dataclass(frozen=True)
class Activations:
    """Bytes of a step's activations: `kept` from the forward to the backward pass, and `recomputed`, the most that a
    single layer adds while it is recomputed."""

    kept: int
    recomputed: int


def _once_a_model(count: Callable[Concatenate[nn.Module, P], R]) -> Callable[Concatenate[nn.Module, P], R]:
    """`count`, with a memory of models of the same layers and sizes: a count at SD 1.5's size takes 4 to 9 s."""
    known: dict[object, R] = {}

    def counted(unet: nn.Module, /, *args: P.args, **kwargs: P.kwargs) -> R:
        layers = tuple((type(each), type(getattr(each, "processor", None))) for each in unet.modules())
        sizes = tuple((name, each.shape, each.requires_grad) for name, each in unet.named_parameters())
        key = (layers, sizes, args, tuple(kwargs.items()))
        if key not in known:
            known[key] = count(unet, *args, **kwargs)
        return known[key]

    return counted


@_once_a_model
def activations(
    unet: nn.Module,
    shape: Shape,
    kind: Kind = "cuda bf16",
    predict: Callable[[nn.Module], Predict] | None = None,
) -> dict[Checkpointing, Activations]:
    """Activations by mode, from one forward pass of a model on the meta device. Trained parameters have
    `requires_grad`. The model cannot be used afterwards: its parameters become fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        _to_fake(unet, torch.bfloat16 if kind == "cuda bf16" else torch.float32)
        unet.train()
        saved = _SavedTensors(unet)
        inputs = _inputs(shape, "cuda")
        with _as_on_cuda(kind.endswith("bf16")), saved.recording():
            (predict or _predictor)(unet)(*inputs)
        return {mode: saved.activations(set(recomputed_parts(unet, mode))) for mode in MODES}


class _SavedTensors:
    """The tensors that autograd saves, by layer."""

    def __init__(self, unet: nn.Module) -> None:
        self._parameters = {each.untyped_storage()._cdata for each in (*unet.parameters(), *unet.buffers())}
        self._held: list[Tensor] = []  # so that no storage is freed and its address used again
        self._bytes: dict[int, int] = {}
        self._in: dict[int, set[nn.Module | None]] = defaultdict(set)
        self._inputs: dict[nn.Module, set[int]] = defaultdict(set)
        self._now: nn.Module | None = None
        for part in recomputed_parts(unet, "full"):
            part.register_forward_pre_hook(self._enter, with_kwargs=True)
            part.register_forward_hook(self._leave)

    def recording(self) -> torch.autograd.graph.saved_tensors_hooks:
        def keep(tensor: Tensor) -> Tensor:
            self._in[self._note(tensor)].add(self._now)
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)

    def activations(self, recomputed: set[nn.Module]) -> Activations:
        """With these layers recomputed, of which only the inputs are kept."""
        kept = {storage for storage, layers in self._in.items() if layers - recomputed}
        kept |= {storage for part in recomputed for storage in self._inputs[part]}
        working: dict[nn.Module | None, int] = defaultdict(int)
        for storage, layers in self._in.items():
            if storage not in kept:
                for layer in layers:
                    working[layer] += self._bytes.get(storage, 0)
        return Activations(sum(self._bytes.get(each, 0) for each in kept), max(working.values(), default=0))

    def _note(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._parameters and storage._cdata not in self._bytes:
            self._held.append(tensor)
            self._bytes[storage._cdata] = storage.nbytes()
        return int(storage._cdata)

    def _enter(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._now = part
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        self._inputs[part] = {self._note(each) for each in given}

    def _leave(self, *_: Any) -> None:
        self._now = None


@_once_a_model
def step_flops(
    unet: nn.Module,
    shape: Shape,
    mode: Checkpointing = "none",
    predict: Callable[[nn.Module], Predict] | None = None,
) -> int:
    """FLOPs of one forward and backward pass of a model on the meta device, what is recomputed included."""
    from torch.utils.flop_counter import FlopCounterMode

    checkpoint_activations(unet, mode)
    unet.train()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        (predict or _predictor)(unet)(*_inputs(shape, "meta")).sum().backward()  # type: ignore[no-untyped-call]
    unet.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def memory(
    unet: nn.Module,
    shape: Shape,
    ema: bool,
    moment_bytes: int = 4,
    kind: Kind = "cuda bf16",
    predict: Callable[[nn.Module], Predict] | None = None,
) -> dict[Checkpointing, Memory]:
    """Memory of a training step by part, for each way of recomputing; the model is on the meta device, and used up. On
    the CPU the process as it is now, which holds the model, stands for weights and all else."""
    learns = sum(each.numel() for each in unet.parameters() if each.requires_grad)
    frozen = sum(each.numel() for each in unet.parameters() if not each.requires_grad)
    parts = {}
    if kind == "cuda bf16":
        parts = {"frozen weights, bf16": 2 * frozen, "trained weights, fp32": 4 * learns}
    elif kind == "cuda fp32":
        parts = {"weights, fp32": 4 * (frozen + learns)}
    if kind.endswith("bf16"):
        parts["bf16 copies of weights"] = 2 * (learns if kind == "cuda bf16" else learns + frozen)
    parts |= {
        "gradients, fp32": 4 * learns,
        "AdamW's moments": 2 * moment_bytes * learns,
        "averaged weights, fp32": 4 * learns if ema else 0,
    }
    if kind.startswith("cuda"):
        parts["CUDA context and slack"] = int(CUDA_CONTEXT)
    else:
        parts["process with its model"] = int(psutil.Process().memory_info().rss)
    return {
        mode: Memory(parts | {"activations": found.kept, "a layer's, computed again": found.recomputed})
        for mode, found in activations(unet, shape, kind, predict).items()
    }


def least_that_fits(room: float, needed: Mapping[Checkpointing, Memory]) -> tuple[Checkpointing | None, Memory]:
    """The mode that recomputes least of those that need no more than `room` bytes; None, and what `full` needs, where
    none does."""
    for mode in MODES:
        if needed[mode].total <= room:
            return mode, needed[mode]
    return None, needed["full"]


def _predictor(unet: nn.Module) -> Predict:
    return video_predictor(unet) if type(unet).__name__ == "UNetMotionModel" else image_predictor(unet)


def _inputs(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    with torch.device(device):
        z_t = torch.empty(shape.clips, 4, shape.frames, shape.height, shape.width)
        t = torch.zeros(shape.clips, dtype=torch.long)
        return z_t, t, torch.empty(shape.clips, shape.text_length, shape.text_width)


def _to_fake(unet: nn.Module, dtype: torch.dtype) -> None:
    """On a CUDA device that need not be there; bf16 copies of weights are counted by `memory`."""
    for module in unet.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=dtype, device="cuda")
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
