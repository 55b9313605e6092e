"""How fast videos become latents: `make bench-cache`.

Three ways on one machine, in one run, over the same clips and the same VAE: this package's build, the VAE in a bare
loop over frames that are in memory already (the limit), and a straightforward script that decodes and encodes one clip
at a time. Clips are drawn and encoded as H.264; the VAEs are the pocket one and a random one as large as Stable
Diffusion's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.builder.build import build_latent_cache
from data_prep.config import CacheConfig
from data_prep.video.child_process import Child

if TYPE_CHECKING:
    from data_prep.encode.encode import UInt8

LIMIT_BATCHES = (4, 8, 16, 32)
LIMIT_SECONDS = 4.0  # of each batch size
MINUTES_MAX = 30


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    vae: str
    """`pocket` or `sd`."""
    size: int
    """Of the cache, pixels."""
    frames: int
    """Of a clip."""
    clips: int
    source_size: int
    """Of the videos, pixels."""
    shard_videos: int


# On a CPU the large VAE takes its time: smaller frames say the same. Shards are small where clips are few, so that the
# workers end together.
ON_CPU = (Case("pocket", 128, 20, 480, 128, 32), Case("pocket", 64, 20, 960, 128, 64), Case("sd", 64, 16, 240, 128, 16))
ON_GPU = (Case("pocket", 256, 20, 960, 256, 64), Case("sd", 256, 20, 960, 256, 64))

SCRIPT = '''
import sys, time, pathlib
import decord, numpy as np, torch
from diffusers import AutoencoderKL
folder, vae, out, device, size, frames = sys.argv[1:4] + [sys.argv[4], int(sys.argv[5]), int(sys.argv[6])]
dtype = torch.float32 if device == "cpu" else torch.float16
model = AutoencoderKL.from_pretrained(vae, torch_dtype=dtype).to(device).eval()
done, began = 0, time.time()
for path in sorted(pathlib.Path(folder).rglob("*.mp4")):
    reader = decord.VideoReader(str(path))
    step = reader.get_avg_fps() / 8
    indices = [min(round(i * step), len(reader) - 1) for i in range(frames)]
    pixels = torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)
    pixels = pixels.to(device, model.dtype) / 127.5 - 1
    pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
    with torch.no_grad():
        latents = model.encode(pixels).latent_dist.mean
    torch.save(latents.half().cpu(), pathlib.Path(out) / f"{path.stem}.pt")
    done += len(indices)
print(done / (time.time() - began))
'''  # fmt: skip  # what one would write first


def main() -> None:
    """Measures and prints a table; `--json FILE` keeps it."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many is told")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    with tempfile.TemporaryDirectory(prefix="animateflow-bench-") as name:
        folder = Path(name)
        for case in ON_GPU if device == "cuda" else ON_CPU:
            results.append({**vars(case), "device": device, **_measure(case, folder, device, options.repeats)})
            print(_lines(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measure(case: Case, folder: Path, device: str, repeats: int) -> dict[str, Any]:
    """Frames a second of each way, in turns."""
    from infra.pocket.clips import write_clips

    name = f"clips-{case.clips}-{case.source_size}"
    if not (folder / name).exists():
        write_clips(folder / name, case.clips, seed=5, size=case.source_size)
    videos, vae = folder / name / "videos", _vae(case.vae, folder)
    config = CacheConfig(size=case.size, frames_min=case.frames, frames_max=case.frames, shard_videos=case.shard_videos)
    ours, limits, scripts = [], [], []
    with tempfile.TemporaryDirectory(dir=folder) as made:
        out = Path(made)
        for repeat in range(repeats):
            ours.append(build_latent_cache(config, videos, None, vae, out / f"cache-{repeat}").metrics)
            limits.append(_limit(config, videos, vae, device))
            scripts.append(_script(config, videos, vae, out / f"script-{repeat}", device))
    best = max(ours, key=lambda metrics: metrics["frames_per_second"])
    return {
        "ours": best["frames_per_second"],
        "ours_all": [metrics["frames_per_second"] for metrics in ours],
        "start_seconds": best["start_seconds"],
        "decode_cpu_ms": 1e3 * best["decode_cpu_seconds"] / (best["frames_per_second"] * best["encode_seconds"]),
        "limit": max(limits),
        "script": max(scripts),
    }


def _script(config: CacheConfig, videos: Path, vae: Path, out: Path, device: str) -> float:
    out.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(videos), str(vae), str(out), device]
    told = subprocess.run(
        [*command, str(config.size), str(config.frames_max)], capture_output=True, text=True, check=True
    )
    return float(told.stdout.split()[-1])


@dataclass(frozen=True)
class _Loop:
    """A bare loop to be timed, in a process of its own."""

    config: CacheConfig
    videos: Path
    vae: Path
    device: str


def _limit(config: CacheConfig, videos: Path, vae: Path, device: str) -> float:
    child: Child[_Loop, float] = Child(bare_loop)
    try:
        child.start(_Loop(config, videos, vae, device))
        return child.finish(60.0 * MINUTES_MAX * (os.cpu_count() or 1))
    finally:
        child.close()


def _pixels(config: CacheConfig, videos: Path) -> UInt8:
    """Every clip decoded: all frames in a row."""
    import numpy as np

    from data_prep.video.decode import DecodedClip, decode_video, prepare, request_for

    prepare()
    found = [decode_video(request_for(config, path.stem, path))[0] for path in sorted(videos.rglob("*.mp4"))]
    return np.concatenate([clip.frames_FHWC for clip in found if isinstance(clip, DecodedClip)])


def bare_loop(loop: _Loop) -> float:
    """Frames a second of the VAE with all CPUs or one GPU, in the batches that suit it best: the same weights,
    precision and layout, over frames that are decoded before the clock starts."""
    import torch

    from data_prep.encode.encode import dtype_of, load_vae
    from infra.runtime import keep_freed_memory

    frames_NHWC = _pixels(loop.config, loop.videos)
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = dtype_of(loop.config.precision, loop.device)
    model = load_vae(loop.vae, loop.device, dtype)

    def encode(frames: UInt8) -> Any:
        pixels = torch.from_numpy(frames).to(loop.device).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
        return model.encode(pixels).latent_dist.mean.half().cpu()

    rates = []
    with torch.inference_mode():
        for batch in LIMIT_BATCHES:
            encode(frames_NHWC[:batch])
            began, done = time.time(), 0
            while time.time() < began + LIMIT_SECONDS:
                first = done % (len(frames_NHWC) - batch + 1)
                encode(frames_NHWC[first : first + batch])
                done += batch
            rates.append(done / (time.time() - began))
    return max(rates)


def _vae(kind: str, folder: Path) -> Path:
    """The pocket VAE, or a random one of Stable Diffusion's size."""
    from infra.pocket.build import WEIGHTS

    if kind == "pocket":
        return WEIGHTS / "base" / "vae"
    import torch

    from components.bench.models import random_sd_vae

    torch.manual_seed(0)
    random_sd_vae().save_pretrained(folder / "sd-vae")
    return folder / "sd-vae"


def _lines(result: dict[str, Any]) -> str:
    ours, limit, script = result["ours"], result["limit"], result["script"]
    return (
        f"{result['vae']} VAE on {result['device']}, {result['clips']} clips of {result['source_size']} px × "
        f"{result['frames']} frames at {result['size']} px:\n"
        f"  ours    {ours:8.1f} frames/s after a start of {result['start_seconds']:.1f} s; "
        f"decoding costs {result['decode_cpu_ms']:.2f} CPU-ms a frame\n"
        f"  limit   {limit:8.1f} frames/s; ours is {ours / limit:.2f} of it\n"
        f"  script  {script:8.1f} frames/s; ours is {ours / script:.2f} of it"
    )


if __name__ == "__main__":
    main()
