"""AnimateDiff in plain PyTorch, written from the paper (arXiv 2307.04725) to check the project's model against.

Modules and tensors carry the original names (official animatediff/models/motion_module.py). Axes: B clips, F frames,
C channels, h w latents, L words, D their width; N is B·F, frame by frame within a clip; S is B·h·w.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

NormMode = Literal["per_frame", "pooled"]
MID = "mid_block.motion_modules.0"
PE = "temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"


def to_frames(x_BCFhw: Tensor) -> Tensor:
    return x_BCFhw.transpose(1, 2).flatten(0, 1)


def to_clips(x_NChw: Tensor, clips: int) -> Tensor:
    return x_NChw.reshape(clips, -1, *x_NChw.shape[1:]).transpose(1, 2)


def group_norm(norm: nn.GroupNorm, x_BCFhw: Tensor, mode: NormMode) -> Tensor:
    """(B, C, F, h, w), normalised with statistics of each frame alone, or of all frames of a clip together."""
    groups = x_BCFhw.reshape(len(x_BCFhw), norm.num_groups, -1, *x_BCFhw.shape[2:])  # B G C/G F h w
    over = (2, 4, 5) if mode == "per_frame" else (2, 3, 4, 5)
    centred = groups - groups.mean(over, keepdim=True)
    normed = (centred / torch.sqrt((centred**2).mean(over, keepdim=True) + norm.eps)).flatten(1, 2)
    return normed * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1)


def sinusoid(length: int, width: int) -> Tensor:
    """(1, length, width) positions: sin at even places, cos at odd ones ("Attention is all you need", sec. 3.5)."""
    pe = torch.zeros(1, length, width, dtype=torch.float64)
    for place in range(0, width, 2):
        angle = torch.arange(length, dtype=torch.float64) / 10000 ** (place / width)
        pe[0, :, place], pe[0, :, place + 1] = angle.sin(), angle.cos()
    return pe.float()


class TemporalAttention(nn.Module):
    """(S, F, C): self-attention over the frames at each place of the picture, positions added before (sec. 4.2)."""

    def __init__(self, width: int, heads: int, max_frames: int) -> None:
        super().__init__()
        self.heads = heads
        self.pos_encoder: Any = nn.Module()
        self.pos_encoder.register_buffer("pe", sinusoid(max_frames, width))
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_encoder.pe[:, : x.shape[1]]
        projected = (to(x) for to in (self.to_q, self.to_k, self.to_v))
        q, k, v = (y.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for y in projected)  # S heads F C/heads
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        out: Tensor = self.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        return out


class Geglu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = torch.chunk(self.proj(x), 2, dim=-1)
        return value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))


class TemporalBlock(nn.Module):
    """(S, F, C): TemporalTransformerBlock of the official file with two Temporal_Self attentions."""

    def __init__(self, width: int, heads: int, max_frames: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(width, heads, max_frames) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) for _ in range(2))
        net = [Geglu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        self.ff = nn.ModuleDict({"net": nn.Sequential(*net)})
        self.ff_norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attention(norm(x))
        fed: Tensor = self.ff["net"](self.ff_norm(x))
        return x + fed


class TemporalModule(nn.Module):
    """One motion module, (B, C, F, h, w) to the same (sec. 4.2; VanillaTemporalModule of the official file)."""

    def __init__(
        self, channels: int, heads: int = 8, groups: int = 32, max_frames: int = 32, norm: NormMode = "per_frame"
    ) -> None:
        super().__init__()
        self.mode: NormMode = norm
        parts = {
            "norm": nn.GroupNorm(groups, channels, eps=1e-6),
            "proj_in": nn.Linear(channels, channels),
            "transformer_blocks": nn.Sequential(TemporalBlock(channels, heads, max_frames)),
            "proj_out": nn.Linear(channels, channels),
        }
        self.temporal_transformer: Any = nn.ModuleDict(parts)

    def forward(self, x_BCFhw: Tensor) -> Tensor:
        B, _, _, h, w = x_BCFhw.shape
        parts = self.temporal_transformer
        rows_SFC: Tensor = group_norm(parts["norm"], x_BCFhw, self.mode).permute(0, 3, 4, 2, 1).flatten(0, 2)
        rows_SFC = parts["proj_out"](parts["transformer_blocks"](parts["proj_in"](rows_SFC)))
        return x_BCFhw + rows_SFC.reshape(B, h, w, *rows_SFC.shape[1:]).permute(0, 4, 3, 1, 2)


class VideoUNet:
    """A diffusers `UNet2DConditionModel`, frame by frame, with a motion module after each of its layers (sec. 4.2).

    `tensors` are in original names and all used. `heads` is one number or one for each level from the top; `groups` and
    `norm` are the motion modules'. `image_norm="pooled"` is the official v1, whose resnets and `conv_norm_out` see all
    frames of a clip together. Calling it gives the noise (B, C, F, h, w); a clip's time and text go to all its frames.
    """

    def __init__(
        self,
        unet2d: Any,
        tensors: Mapping[str, Tensor],
        heads: int | tuple[int, ...],
        groups: int = 32,
        norm: NormMode = "per_frame",
        image_norm: NormMode = "per_frame",
    ) -> None:
        self.unet, self.image_norm = unet2d, image_norm
        levels = len(unet2d.down_blocks)
        per_level = heads if isinstance(heads, tuple) else (heads,) * levels
        places = {MID: per_level[-1]} if any(key.startswith(MID) for key in tensors) else {}
        for side, its_heads in (("down_blocks", per_level), ("up_blocks", per_level[::-1])):
            for i, block in enumerate(getattr(unet2d, side)):
                places |= {f"{side}.{i}.motion_modules.{j}": its_heads[i] for j in range(len(block.resnets))}
        self.motion: dict[str, TemporalModule] = {}
        unused = dict(tensors)
        for place, its_head_count in places.items():
            state = {key.removeprefix(f"{place}."): unused.pop(key) for key in tensors if key.startswith(f"{place}.")}
            _, max_frames, width = state[PE].shape
            self.motion[place] = TemporalModule(width, its_head_count, groups, max_frames, norm)
            self.motion[place].load_state_dict(state, strict=True)
        assert not unused, f"no place for {sorted(unused)}"

    def norm(self, norm: nn.GroupNorm, x_NChw: Tensor, clips: int) -> Tensor:
        return to_frames(group_norm(norm, to_clips(x_NChw, clips), self.image_norm))

    def resnet(self, resnet: Any, x_NChw: Tensor, temb_ND: Tensor, clips: int) -> Tensor:
        hidden: Tensor = resnet.conv1(silu(self.norm(resnet.norm1, x_NChw, clips)))
        hidden = hidden + resnet.time_emb_proj(silu(temb_ND))[:, :, None, None]
        hidden = resnet.conv2(silu(self.norm(resnet.norm2, hidden, clips)))
        return hidden + (x_NChw if resnet.conv_shortcut is None else resnet.conv_shortcut(x_NChw))

    @torch.no_grad()
    def __call__(self, z_BCFhw: Tensor, t_B: Tensor, text_BLD: Tensor) -> Tensor:
        clips, frames = z_BCFhw.shape[0], z_BCFhw.shape[2]
        unet, mid = self.unet, self.unet.mid_block
        temb = unet.time_embedding(unet.time_proj(t_B)).repeat_interleave(frames, 0)
        text = text_BLD.repeat_interleave(frames, 0)

        def move(place: str, x: Tensor) -> Tensor:
            return to_frames(self.motion[place](to_clips(x, clips)))

        def layer(name: str, block: Any, j: int, x: Tensor) -> Tensor:
            x = self.resnet(block.resnets[j], x, temb, clips)
            if hasattr(block, "attentions"):
                x = block.attentions[j](x, encoder_hidden_states=text, return_dict=False)[0]
            return move(f"{name}.motion_modules.{j}", x)

        x = unet.conv_in(to_frames(z_BCFhw))
        skips = [x]
        for i, block in enumerate(unet.down_blocks):
            for j in range(len(block.resnets)):
                x = layer(f"down_blocks.{i}", block, j, x)
                skips.append(x)
            for down in block.downsamplers or []:
                x = down(x)
                skips.append(x)
        x = self.resnet(mid.resnets[0], x, temb, clips)
        x = mid.attentions[0](x, encoder_hidden_states=text, return_dict=False)[0]
        if MID in self.motion:
            x = move(MID, x)
        x = self.resnet(mid.resnets[1], x, temb, clips)
        for i, block in enumerate(unet.up_blocks):
            for j in range(len(block.resnets)):
                x = layer(f"up_blocks.{i}", block, j, torch.cat([x, skips.pop()], dim=1))
            for up in block.upsamplers or []:
                x = up(x)
        return to_clips(unet.conv_out(silu(self.norm(unet.conv_norm_out, x, clips))), clips)
