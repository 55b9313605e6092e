"""The original AnimateDiff format, generated from its published naming rules (the facts table of the design; official
animatediff/models/motion_module.py and unet_blocks.py), independently of the project's own renaming.

d is a motion module's width, L its number of positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
SD15, SDXL, POCKET = (320, 640, 1280, 1280), (320, 640, 1280), (32, 64, 96)
POCKET_METADATA = {"animateflow.heads": "4,8,8", "animateflow.norm_groups": "16", "animateflow.preset": "from-base"}


def places(widths: tuple[int, ...], layers: int = 2, mid_block: bool = False) -> list[tuple[str, int]]:
    """Where the motion modules sit, and their widths."""
    found = [(f"down_blocks.{i}.motion_modules.{j}", d) for i, d in enumerate(widths) for j in range(layers)]
    found += [("mid_block.motion_modules.0", widths[-1])] * mid_block
    return found + [
        (f"up_blocks.{i}.motion_modules.{j}", d) for i, d in enumerate(reversed(widths)) for j in range(layers + 1)
    ]


def motion_module(widths: tuple[int, ...], positions: int, layers: int = 2, mid_block: bool = False) -> Shapes:
    """Every tensor of a motion-module file."""
    shapes: Shapes = {}
    for place, d in places(widths, layers, mid_block):
        at = f"{place}.temporal_transformer."
        shapes |= {at + "norm.weight": (d,), at + "norm.bias": (d,)}
        for projection in ("proj_in", "proj_out"):
            shapes |= {f"{at}{projection}.weight": (d, d), f"{at}{projection}.bias": (d,)}
        block = at + "transformer_blocks.0."
        for i in (0, 1):
            attention = f"{block}attention_blocks.{i}."
            shapes |= {f"{attention}to_{which}.weight": (d, d) for which in "qkv"}
            shapes |= {attention + "to_out.0.weight": (d, d), attention + "to_out.0.bias": (d,)}
            shapes[attention + "pos_encoder.pe"] = (1, positions, d)
            shapes |= {f"{block}norms.{i}.weight": (d,), f"{block}norms.{i}.bias": (d,)}
        shapes |= {block + "ff.net.0.proj.weight": (8 * d, d), block + "ff.net.0.proj.bias": (8 * d,)}
        shapes |= {block + "ff.net.2.weight": (d, 4 * d), block + "ff.net.2.bias": (d,)}
        shapes |= {block + "ff_norm.weight": (d,), block + "ff_norm.bias": (d,)}
    return shapes


def motion_lora(widths: tuple[int, ...], rank: int, layers: int = 2, mid_block: bool = False) -> Shapes:
    """Every tensor of a MotionLoRA file."""
    shapes: Shapes = {}
    for place, d in places(widths, layers, mid_block):
        for i in (0, 1):
            at = f"{place}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}.processor."
            for which in ("q", "k", "v", "out"):
                shapes |= {f"{at}to_{which}_lora.down.weight": (rank, d), f"{at}to_{which}_lora.up.weight": (d, rank)}
    return shapes


def domain_adapter(widths: tuple[int, ...], text_width: int, rank: int, layers: int = 2) -> Shapes:
    """Every tensor of a domain-adapter file; the innermost level of a Stable Diffusion UNet has no attention."""
    places = [(f"down_blocks.{i}.attentions.{j}", d) for i, d in enumerate(widths[:-1]) for j in range(layers)]
    places += [("mid_block.attentions.0", widths[-1])]
    outer = list(enumerate(reversed(widths)))[1:]
    places += [(f"up_blocks.{i}.attentions.{j}", d) for i, d in outer for j in range(layers + 1)]
    shapes: Shapes = {}
    for place, d in places:
        for attention, context in (("attn1", d), ("attn2", text_width)):
            at = f"{place}.transformer_blocks.0.{attention}.processor."
            for which in ("q", "k", "v", "out"):
                inside = context if which in "kv" else d
                shapes |= {f"{at}to_{which}_lora.down.weight": (rank, inside)}
                shapes |= {f"{at}to_{which}_lora.up.weight": (d, rank)}
    return shapes


def filled(shapes: Shapes, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random numbers of these shapes; positions are sinusoids."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (sinusoid(*shape[1:]) if name.endswith(".pe") else 0.1 * torch.randn(shape, generator=generator)).to(
            dtype
        )
        for name, shape in shapes.items()
    }


def sinusoid(positions: int, width: int) -> Tensor:
    """(1, L, d): sin and cos of p / 10000^(2i/d) (Vaswani et al. 2017, sec. 3.5)."""
    angles = torch.arange(positions)[:, None] * torch.exp(
        torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width)
    )
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


def original(kind: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A file of the pocket's sizes in the original format."""
    shapes = {
        "motion-module": lambda: motion_module(POCKET, 32, layers=1),
        "motion-lora": lambda: motion_lora(POCKET, 4, layers=1),
        "domain-adapter": lambda: domain_adapter(POCKET, 128, 4, layers=1),
    }[kind]()
    return filled(shapes, dtype)


def equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Same names, dtypes and bits."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )
