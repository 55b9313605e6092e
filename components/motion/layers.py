"""Layers of the video model that differ from diffusers': GroupNorms, temporal attention, temporal convolution.

B batch, F frames, C channels, h w latents. Whether a GroupNorm takes its statistics per frame or over all frames
depends on the preset. The GroupNorms here have the parameter names of those that they replace.

| | norm of the temporal transformer | norms of resnets and output |
|---|---|---|
| official v1 | per frame | pooled over all frames |
| official v2, v3, sdxl-beta | per frame | per frame |
| stock diffusers | pooled over all frames | per frame |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CUDA_BATCH_MAX = 65_535
"""Largest batch of CUDA's attention kernels (a limit of the grid). At 512 px, B·h·w exceeds it from B = 16 on."""


class PerFrameGroupNorm(nn.GroupNorm):
    """GroupNorm of (B, C, F, h, w) with statistics per frame (official animatediff/models/motion_module.py, forward of
    TemporalTransformer3DModel)."""

    def forward(self, input: Tensor) -> Tensor:
        frames_first = input.transpose(1, 2)  # undoes a permutation of the caller, so this is contiguous
        batch, frames = frames_first.shape[:2]
        normed = super().forward(frames_first.flatten(0, 1))
        return normed.view(batch, frames, *normed.shape[1:]).transpose(1, 2)


class FrameCount:
    """The number of frames per clip in a UNet's current input. Its layers need it, since they get (B·F, C, h, w)."""

    def __init__(self) -> None:
        self.frames = 1

    def record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook for a `UNetMotionModel`, whose sample is (B, C, F, h, w)."""
        self.frames = (args[0] if args else kwargs["sample"]).shape[2]


class PooledGroupNorm(nn.GroupNorm):
    """GroupNorm of (B·F, C, h, w) with statistics over all frames of a clip, as in the official v1 (official
    animatediff/models/resnet.py without `use_inflated_groupnorm`)."""

    def __init__(
        self, num_groups: int, num_channels: int, eps: float, frame_count: FrameCount, device: Any = None
    ) -> None:
        super().__init__(num_groups, num_channels, eps, device=device)
        self.frame_count = frame_count

    def forward(self, input: Tensor) -> Tensor:
        clips = input.reshape(-1, self.frame_count.frames, *input.shape[1:]).transpose(1, 2)
        return super().forward(clips).transpose(1, 2).flatten(0, 1)


class TemporalAttention:
    """A diffusers attention processor: self-attention over frames of (B·h·w, F, C).

    Batches above `CUDA_BATCH_MAX` are split. On the CPU plain matrix products are used: for sequences as short as these
    they are a third faster than torch's kernel.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None, "temporal attention is self-attention"
        assert attention_mask is None, "every frame sees every frame"
        chunks = hidden_states.chunk(-(-len(hidden_states) // CUDA_BATCH_MAX))
        outputs = [self._attend(attn, chunk) for chunk in chunks]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend(self, attn: Any, hidden_states: Tensor) -> Tensor:
        batch, frames, _ = hidden_states.shape
        q, k, v = (
            project(hidden_states).view(batch, frames, attn.heads, -1).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if hidden_states.device.type == "cpu":
            attended = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return torch.as_tensor(attn.to_out[0](attended.transpose(1, 2).reshape(batch, frames, -1)))


class TemporalConvolution(nn.Module):
    """1-D convolutions over frames in place of the temporal transformer (paper sec. 5.3, ablation).

    Seven convolutions with kernel size 3, so that the receptive field is 7 frames to each side, and a projection that
    starts at zero: 22d² + 22d parameters at width d, where the temporal transformer has 22d² + 21d. Norms are per
    frame.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm: nn.GroupNorm = PerFrameGroupNorm(groups, channels, eps=1e-6)
        self.proj_in = _conv_over_frames(channels)
        self.blocks = nn.ModuleList(ResidualBlock(channels, groups) for _ in range(3))
        self.proj_out = nn.Conv3d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: Tensor, *unused: Any, num_frames: int = 1, **also_unused: Any) -> Tensor:
        """(B·F, C, h, w) to the same shape. The arguments are those of diffusers' AnimateDiffTransformer3D."""
        clips = hidden_states.reshape(-1, num_frames, *hidden_states.shape[1:]).transpose(1, 2)
        hidden = self.proj_in(self.norm(clips))
        for block in self.blocks:
            hidden = block(hidden)
        return torch.as_tensor(self.proj_out(hidden).transpose(1, 2).flatten(0, 1) + hidden_states)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, C, F, h, w)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = PerFrameGroupNorm(groups, channels, eps=1e-6)
        self.conv1 = _conv_over_frames(channels)
        self.norm2 = PerFrameGroupNorm(groups, channels, eps=1e-6)
        self.conv2 = _conv_over_frames(channels)

    def forward(self, clips: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(clips)))
        return torch.as_tensor(clips + self.conv2(F.silu(self.norm2(hidden))))


def _conv_over_frames(channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
