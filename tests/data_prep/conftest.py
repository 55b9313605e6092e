"""Drawn clips, and a small random VAE."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_prep.config import CacheConfig
from infra.artifacts.artifacts import Artifact
from infra.pocket.clips import write_clips

WHOLE = CacheConfig(size=32, frames_max=20, shard_videos=2, workers=1)
REALVIDEO = Path(__file__).resolve().parents[3] / "shared" / "realvideo"


@pytest.fixture(scope="session")
def realvideo() -> Path:
    """Real footage beside the project, where there is any."""
    if not REALVIDEO.is_dir():
        pytest.skip("no real footage beside the project")
    return REALVIDEO


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clips.csv` of five drawn clips of 2.5 s at 16 fps, 64 pixels; the files are in `videos/`."""
    return write_clips(tmp_path_factory.mktemp("clips"), 5, seed=7, size=64)


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VAE as the `vae/` of a pipeline folder: four latent channels at a fourth of the size."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.5,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    model.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def whole(clips: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A cache of the five drawn clips, built without a break; tests leave it as it is."""
    from data_prep.builder.build import build_latent_cache

    return build_latent_cache(WHOLE, clips, clips.parent / "videos", vae, tmp_path_factory.mktemp("whole") / "cache")


Write = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> Write:
    """Writes frames (F, H, W, 3) to `tmp_path/name`; `seconds` gives each frame's time, otherwise `fps` does."""
    import av

    def write(
        name: str,
        frames_FHWC: np.ndarray,
        fps: int = 16,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        seconds: list[float] | None = None,
        options: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.height, stream.width = frames_FHWC.shape[1:3]
            stream.pix_fmt = pix_fmt
            # AVI has one rate for the whole file, and counts in it.
            time_base = Fraction(1, fps if path.suffix == ".avi" else 1000)
            stream.codec_context.time_base = time_base
            for place, pixels in enumerate(frames_FHWC):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.time_base = time_base
                frame.pts = round((place / fps if seconds is None else seconds[place]) / time_base)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


def noise_frames(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Frames of large random squares, each frame unlike the others and easy on a codec."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)
