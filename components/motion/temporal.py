"""What the video model has and the image model has not, beside diffusers' temporal transformer.

B batch, F frames, C channels, h w latents. The official code normalises in three ways, by preset; both kinds of
GroupNorm here keep the names of the parameters of the one they stand in for:

| | temporal transformer's own norm | norms of resnets and output |
|---|---|---|
| official v1 | per frame | pooled over the window |
| official v2, v3, sdxl-beta | per frame | per frame |
| stock diffusers | pooled over the window | per frame |
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CUDA_BATCH_MAX = 65_535
"""Attention kernels put the batch on a grid axis of this length; B·h·w passes it at 512 px from B = 16 on."""


class PerFrameGroupNorm(nn.GroupNorm):
    """GroupNorm of (B, C, F, h, w) with statistics per frame (official animatediff/models/motion_module.py, forward of
    TemporalTransformer3DModel)."""

    def forward(self, input: Tensor) -> Tensor:
        frames_first = input.transpose(1, 2)  # the caller permuted (B·F, C, h, w), so this is contiguous again
        batch, frames = frames_first.shape[:2]
        normed = super().forward(frames_first.flatten(0, 1))
        return normed.view(batch, frames, *normed.shape[1:]).transpose(1, 2)


class Window:
    """The number of frames of the clip that a UNet is working on; its layers see (B·F, C, h, w) and cannot tell."""

    def __init__(self) -> None:
        self.frames = 1

    def see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of a `UNetMotionModel`, whose sample is (B, C, F, h, w)."""
        self.frames = (args[0] if args else kwargs["sample"]).shape[2]


class PooledGroupNorm(nn.GroupNorm):
    """GroupNorm of (B·F, C, h, w) with statistics over all frames of a clip: official v1, where resnets normalise 5-D
    tensors (animatediff/models/resnet.py without `use_inflated_groupnorm`)."""

    def __init__(self, num_groups: int, num_channels: int, eps: float, window: Window, device: Any = None) -> None:
        super().__init__(num_groups, num_channels, eps, device=device)
        self.window = window

    def forward(self, input: Tensor) -> Tensor:
        clips = input.reshape(-1, self.window.frames, *input.shape[1:]).transpose(1, 2)
        return super().forward(clips).transpose(1, 2).flatten(0, 1)


class TemporalAttention:
    """Scaled dot product attention of (B·h·w, F, C), in parts where the batch is longer than CUDA kernels take, and on
    the CPU by plain matrix products, which are a third faster than torch's kernel on windows as short as these."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is None, "temporal attention is self-attention"
        assert attention_mask is None, "every frame sees every frame"
        parts = hidden_states.chunk(-(-len(hidden_states) // CUDA_BATCH_MAX))
        done = [self._attend(attn, part) for part in parts]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _attend(self, attn: Any, hidden_states: Tensor) -> Tensor:
        batch, frames, _ = hidden_states.shape
        q, k, v = (
            project(hidden_states).view(batch, frames, attn.heads, -1).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if hidden_states.device.type == "cpu":
            found = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        else:
            found = F.scaled_dot_product_attention(q, k, v)
        return torch.as_tensor(attn.to_out[0](found.transpose(1, 2).reshape(batch, frames, -1)))


class TemporalConvolution(nn.Module):
    """1-D convolutions over frames in place of the temporal transformer, of its size (paper sec. 5.3, ablation).

    Seven convolutions of three frames, so that a frame sees seven to each side, and a projection that starts at zero:
    22d² + 22d parameters of width d, where the temporal transformer has 22d² + 21d. Every norm is per frame.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm: nn.GroupNorm = PerFrameGroupNorm(groups, channels, eps=1e-6)
        self.proj_in = _over_frames(channels)
        self.blocks = nn.ModuleList(TemporalResidual(channels, groups) for _ in range(3))
        self.proj_out = nn.Conv3d(channels, channels, kernel_size=1)

    def forward(self, hidden_states: Tensor, *unused: Any, num_frames: int = 1, **also_unused: Any) -> Tensor:
        """(B·F, C, h, w) to the same; called as diffusers' AnimateDiffTransformer3D is."""
        clips = hidden_states.reshape(-1, num_frames, *hidden_states.shape[1:]).transpose(1, 2)
        inner = self.proj_in(self.norm(clips))
        for block in self.blocks:
            inner = block(inner)
        return torch.as_tensor(self.proj_out(inner).transpose(1, 2).flatten(0, 1) + hidden_states)


class TemporalResidual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, C, F, h, w)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = PerFrameGroupNorm(groups, channels, eps=1e-6)
        self.conv1 = _over_frames(channels)
        self.norm2 = PerFrameGroupNorm(groups, channels, eps=1e-6)
        self.conv2 = _over_frames(channels)

    def forward(self, clips: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(clips)))
        return torch.as_tensor(clips + self.conv2(F.silu(self.norm2(inner))))


def _over_frames(channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
