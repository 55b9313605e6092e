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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.build import CacheConfig, build_latent_cache

if TYPE_CHECKING:
    from data_prep.encode import UInt8

LIMIT_BATCHES = (4, 16, 64)

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

    from infra.pocket.clips import write_clips

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many is told")
    parser.add_argument("--vae", choices=("pocket", "sd", "both"), default="both")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    with tempfile.TemporaryDirectory(prefix="animateflow-bench-") as name:
        folder = Path(name)
        videos = write_clips(folder, options.clips, seed=5, size=256 if device == "cuda" else 128).parent / "videos"
        for kind in ("pocket", "sd") if options.vae == "both" else (options.vae,):
            # on a CPU the large VAE takes its time: fewer and smaller frames say the same
            size, frames = (256, 20) if device == "cuda" else (64, 20 if kind == "pocket" else 4)
            config = CacheConfig(size=size, frames_min=frames, frames_max=frames, shard_videos=32)
            vae = _vae(kind, folder)
            result = _measure(config, videos, vae, folder / kind, device, options.repeats)
            results.append(
                {"vae": kind, "device": device, "clips": options.clips, "size": size, "frames": frames, **result}
            )
            print(_lines(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measure(config: CacheConfig, videos: Path, vae: Path, out: Path, device: str, repeats: int) -> dict[str, Any]:
    ours, script, limit = [], [], []
    for repeat in range(repeats):
        made = build_latent_cache(config, videos, None, vae, out / f"cache-{repeat}")
        ours.append(made.metrics)
        limit.append(_limit(config, _pixels(config, videos), vae, device))
        folder = out / f"script-{repeat}"
        folder.mkdir(parents=True)
        command = [sys.executable, "-c", SCRIPT, str(videos), str(vae), str(folder), device]
        told = subprocess.run(
            [*command, str(config.size), str(config.frames_max)], capture_output=True, text=True, check=True
        )
        script.append(float(told.stdout.split()[-1]))
    best = max(ours, key=lambda metrics: metrics["frames_per_second"])
    frames = best["frames_per_second"] * best["encode_seconds"]
    return {
        "ours": best["frames_per_second"],
        "start_seconds": best["start_seconds"],
        "decode_cpu_ms": 1e3 * best["decode_cpu_seconds"] / frames,
        "limit": max(limit),
        "script": max(script),
    }


def _pixels(config: CacheConfig, videos: Path) -> UInt8:
    """Every clip decoded: all frames in a row."""
    import numpy as np

    from data_prep.decode import DecodedClip, decode_video, prepare, request_for

    prepare()
    found = [decode_video(request_for(config, path.stem, path))[0] for path in sorted(videos.rglob("*.mp4"))]
    return np.concatenate([clip.frames_FHWC for clip in found if isinstance(clip, DecodedClip)])


def _limit(config: CacheConfig, frames_NHWC: UInt8, vae: Path, device: str) -> float:
    """Frames a second of a bare loop with all CPUs or one GPU: the same VAE, precision and layout, in the batches that
    suit it best."""
    import torch

    from data_prep.encode import dtype_of, load_vae

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = dtype_of(config.precision, device)
    model = load_vae(vae, device, dtype)

    def encode(frames: UInt8) -> Any:
        pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
        return model.encode(pixels).latent_dist.mean.half().cpu()

    rates = []
    with torch.inference_mode():
        for batch in LIMIT_BATCHES:
            encode(frames_NHWC[:batch])
            began = time.time()
            for first in range(0, len(frames_NHWC), batch):
                encode(frames_NHWC[first : first + batch])
            rates.append(len(frames_NHWC) / (time.time() - began))
    return max(rates)


def _vae(kind: str, folder: Path) -> Path:
    """The pocket VAE, or a random one with Stable Diffusion 1.5's configuration (83.7 M parameters)."""
    from infra.pocket.build import WEIGHTS

    if kind == "pocket":
        return WEIGHTS / "base" / "vae"
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "sd-vae")
    return folder / "sd-vae"


def _lines(result: dict[str, Any]) -> str:
    clips, frames, size = result["clips"], result["frames"], result["size"]
    return (
        f"{result['vae']} VAE on {result['device']}, {clips} clips × {frames} frames at {size} px:\n"
        f"  ours    {result['ours']:8.1f} frames/s after a start of {result['start_seconds']:.1f} s; "
        f"decoding costs {result['decode_cpu_ms']:.2f} CPU-ms a frame\n"
        f"  limit   {result['limit']:8.1f} frames/s; ours is {result['ours'] / result['limit']:.2f} of it\n"
        f"  script  {result['script']:8.1f} frames/s; ours is {result['ours'] / result['script']:.2f} of it"
    )


if __name__ == "__main__":
    main()
