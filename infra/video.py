"""Frames to files and back: mp4 and gif of an animation. F frames, H W pixels, uint8 0..255."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]


def write_mp4(path: Path, frames_FHWC: UInt8, fps: int, crf: int = 20) -> None:
    """H.264, 4:2:0; equal frames give equal bytes; H and W must be even.

    One thread, and no macroblock tree: its look-ahead reads memory that nobody wrote, and gave five different files
    in 100 writings of the same frames.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "threads": "1", "x264-params": "mbtree=0"}
        )
        stream.height, stream.width = frames_FHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, frames_FHWC: UInt8, fps: int, scale: int = 1) -> None:
    """A looping gif; `scale` enlarges by whole pixels for pictures too small to see."""
    height, width = frames_FHWC.shape[1:3]
    frames = [
        Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        for frame in frames_FHWC
    ]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def read_mp4(path: Path) -> UInt8:
    """All frames (F, H, W, 3) of a short video of ours, in order."""
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
