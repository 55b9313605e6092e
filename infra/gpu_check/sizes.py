"""How large everything is: as on a GPU of 80 GB, or as small as shows that the code runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """B clips, F frames, pixels; seconds of each timing."""

    name: str
    judged: bool
    """Whether speeds and memory are held against their targets."""
    timing_seconds: float
    model: str
    """Of the speeds: one of the bench's."""
    clips: tuple[int, ...]
    """B of the motion module's steps, the middle one that of every comparison."""
    clips_recomputed: int
    stills: int
    frames: int
    size: int
    exact_model: str
    """Of the comparisons with the CPU, with its clips, frames and pixels."""
    exact_clips: int
    exact_frames: int
    exact_size: int
    exact_steps: int
    windows_max: int
    """What temporal attention takes at a time."""
    window_width: int
    matmul_gib: float
    vae_clips: int
    animation_size: int
    animation_frames: int
    animation_steps: int
    pocket_steps: tuple[int, int, int]
    """Of VAE, base model and CLIP."""
    pocket_share: float
    """Share of the pictures that they learn from."""


FULL = Sizes(
    name="full", judged=True, timing_seconds=4.0, model="sd15", clips=(1, 4, 8), clips_recomputed=32, stills=64,
    frames=16, size=256, exact_model="pocket", exact_clips=2, exact_frames=16, exact_size=64, exact_steps=20,
    windows_max=65_535, window_width=320, matmul_gib=0.4, vae_clips=48, animation_size=512, animation_frames=16,
    animation_steps=25, pocket_steps=(4000, 5000, 1600), pocket_share=1.0,
)  # fmt: skip
REHEARSAL = Sizes(
    name="rehearsal", judged=False, timing_seconds=0.1, model="tiny", clips=(1, 2, 3), clips_recomputed=4, stills=2,
    frames=2, size=32, exact_model="tiny", exact_clips=2, exact_frames=3, exact_size=32, exact_steps=3,
    windows_max=50, window_width=64, matmul_gib=0.01, vae_clips=4, animation_size=64, animation_frames=2,
    animation_steps=2, pocket_steps=(2, 2, 2), pocket_share=0.002,
)  # fmt: skip
