"""Procedural captioned clips whose ground truth is known: a shape of one colour that moves over a background.

World units: the picture spans -1..1 on both axes, x to the right, y down. F frames, H W pixels, colours uint8 0..255.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from infra.video import UInt8, write_mp4

Float = NDArray[np.floating[Any]]

SHAPES = ("square", "circle", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 32, 38),
    "blue": (36, 64, 240),
    "yellow": (250, 222, 40),
    "white": (245, 245, 245),
    "purple": (168, 40, 200),
}
BACKGROUNDS = ("grass", "sand", "water", "bricks")
MOTIONS: dict[str, tuple[int, int]] = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
    "standing still": (0, 0),
}
CAMERAS = ("static", "zoom-in", "zoom-out", "pan-left", "pan-right")
DOMAINS = ("clean", "stock")
STYLES = ("plain", "ink", "neon")

CLIP_FPS = 16
CLIP_SECONDS = 2.5
SPEED_PER_SECOND = 0.45  # world units; 28 pixels of 64 in the two seconds of a 16-frame window at 8 fps
CAMERA_RATE = 0.25  # ln(zoom) per second, or world units per second for a pan
BACKGROUND_SPAN = 1.6  # half-width of the drawn background in world units, so that a moving camera sees no border


@dataclass(frozen=True)
class Scene:
    """All that determines a clip, together with `seed` (position, size, texture)."""

    shape: str
    colour: str
    motion: str
    background: str
    seed: int
    camera: str = "static"
    domain: str = "clean"
    style: str = "plain"

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {self.motion} on {self.background}"


def every_prompt() -> list[str]:
    """All 400 captions of the world, in a fixed order."""
    return [
        Scene(shape, colour, motion, background, 0).caption
        for shape, colour, motion, background in itertools.product(SHAPES, COLOURS, MOTIONS, BACKGROUNDS)
    ]


def random_scenes(count: int, seed: int, domain: str = "clean", style: str = "plain") -> Iterator[Scene]:
    """`count` scenes, attributes independent and uniform; scene i depends on (seed, i) alone."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        yield Scene(
            shape=str(rng.choice(SHAPES)),
            colour=str(rng.choice(list(COLOURS))),
            motion=str(rng.choice(list(MOTIONS))),
            background=str(rng.choice(BACKGROUNDS)),
            seed=int(rng.integers(2**31)),
            domain=domain,
            style=style,
        )


def render(scene: Scene, frames: int, size: int, fps: float = CLIP_FPS) -> UInt8:
    """Frames (F, H, W, 3) uint8 of the scene; `frames=1` gives a still at a place that any clip may pass through."""
    rng = np.random.default_rng(scene.seed)
    background = _background(scene.background, rng, size)
    radius = rng.uniform(0.36, 0.46)
    direction = np.array(MOTIONS[scene.motion], dtype=np.float64)
    centre = rng.uniform(-0.5, 0.5, size=2)
    speed = SPEED_PER_SECOND * rng.uniform(0.85, 1.15)
    if frames > 1:  # a clip passes through the middle along its direction and keeps its place across it
        centre = np.where(direction != 0, rng.uniform(-0.1, 0.1, size=2), centre)
    seconds = (np.arange(frames) - (frames - 1) / 2) / fps
    centres = centre + seconds[:, None] * speed * direction

    out = np.empty((frames, size, size, 3), dtype=np.uint8)
    for index in range(frames):
        zoom, shift = _camera(scene.camera, seconds[index])
        x, y = _grid(size)
        x, y = x / zoom + shift[0], y / zoom + shift[1]
        distance = _signed_distance(scene.shape, x - centres[index, 0], y - centres[index, 1], radius)
        base = _view(background, zoom, shift, size)
        out[index] = _paint(base, distance * zoom, COLOURS[scene.colour], scene.style, size)
    return _stock_footage(out) if scene.domain == "stock" else out


def write_clips(
    folder: Path, count: int, seed: int, domain: str = "stock", size: int = 128, camera: str = "static"
) -> Path:
    """Writes `count` H.264 clips under `folder/videos/` and `folder/clips.csv` in WebVid's columns; returns the CSV.

    Files at `videos/{page_dir}/{videoid}.mp4`. Same arguments, same pictures; x264 runs on one thread so that the
    bytes are the same too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "clips.csv"
    with table.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for index, scene in enumerate(random_scenes(count, seed, domain)):
            clip_id = f"{seed * 1_000_000 + index:09d}"
            page = f"{index // 50 * 50 + 1:06d}_{index // 50 * 50 + 50:06d}"
            path = folder / "videos" / page / f"{clip_id}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = render(replace(scene, camera=camera), round(CLIP_FPS * CLIP_SECONDS), size)
            write_mp4(path, frames, CLIP_FPS)
            writer.writerow([clip_id, "", "PT00H00M02S", page, scene.caption])
    return table


def _grid(size: int) -> tuple[Float, Float]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def _signed_distance(shape: str, x: Float, y: Float, radius: float) -> Float:
    """Signed distance to the outline in world units, negative inside. Areas of the four shapes are alike."""
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - 0.95 * radius)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) - 0.84 * radius)
    if shape == "triangle":
        slope = 0.8660254 * np.abs(x) - 0.5 * y
        return np.asarray(np.maximum(slope, y) - 0.64 * radius)
    long, wide = 1.05 * radius, 0.36 * radius
    upright = np.maximum(np.abs(x) - wide, np.abs(y) - long)
    across = np.maximum(np.abs(x) - long, np.abs(y) - wide)
    return np.asarray(np.minimum(upright, across))


def _paint(base: UInt8, distance: Float, colour: tuple[int, int, int], style: str, size: int) -> UInt8:
    """Draws the shape with a dark rim over the background, in one of `STYLES`."""
    pixels = distance * size / 2
    cover = np.clip(0.5 - pixels, 0, 1)[..., None]
    inner = np.clip(0.5 - pixels - size / 40, 0, 1)[..., None]
    picture: Float = base.astype(np.float32)
    fill = np.array(colour, dtype=np.float32)
    if style == "neon":
        glow = np.exp(-np.abs(distance)[..., None] * 9)
        picture = picture * np.array([0.3, 0.24, 0.5], dtype=np.float32) * (1 - cover * 0.7) + fill * glow
    else:
        picture = picture * (1 - cover) + cover * (inner * fill + (1 - inner) * fill * 0.25)
    if style == "ink":
        light = picture @ np.array([0.3, 0.59, 0.11], dtype=np.float32) / 255
        slope = np.hypot(*np.gradient(light)) * 3.0
        tone = np.clip(0.25 + 0.8 * light - slope, 0, 1)[..., None]
        ink, paper = np.array([28, 36, 80], dtype=np.float32), np.array([250, 242, 222], dtype=np.float32)
        picture = 0.8 * (ink + (paper - ink) * tone) + 0.2 * picture
    return np.clip(picture, 0, 255).astype(np.uint8)


def _background(kind: str, rng: np.random.Generator, size: int) -> UInt8:
    """A texture square that spans `BACKGROUND_SPAN` world units each way at the picture's resolution."""
    side = round(size * BACKGROUND_SPAN)
    v, u = np.meshgrid(np.linspace(0, BACKGROUND_SPAN, side), np.linspace(0, BACKGROUND_SPAN, side), indexing="ij")
    noise = rng.standard_normal((side, side)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, size=4)
    if kind == "grass":
        blades = sum(np.roll(noise, shift, axis=0) for shift in range(5)) / 5**0.5
        value, tint = 16 * blades + 8 * np.sin(5 * u + phase[0]) * np.sin(4 * v + phase[1]), (48, 128, 44)
    elif kind == "sand":
        ripples = np.sin(2 * np.pi * 5 * v + 1.5 * np.sin(2 * np.pi * u + phase[0]) + phase[1])
        value, tint = 12 * ripples + 6 * noise, (214, 182, 124)
    elif kind == "water":
        waves = np.sin(18 * v + 3 * np.sin(6 * u + phase[0]) + phase[1]) + 0.6 * np.sin(9 * u + 14 * v + phase[2])
        value, tint = 22 * np.clip(waves, -0.4, 2) + 3 * noise, (24, 96, 128)
    else:
        rows = np.floor(v * 5 + phase[0])
        along = u * 2.5 + 0.5 * (rows % 2) + phase[1]
        mortar = ((v * 5 + phase[0]) % 1 < 0.16) | (along % 1 < 0.07)
        shade = np.sin(12.9898 * rows + 78.233 * np.floor(along) + phase[2]) * 12
        value, tint = np.where(mortar, 62, shade + 4 * noise), (146, 76, 58)
    picture = np.asarray(tint, dtype=np.float32) + np.asarray(value, dtype=np.float32)[..., None]
    return np.asarray(np.clip(picture, 0, 255), dtype=np.uint8)


def _camera(kind: str, seconds: float) -> tuple[float, tuple[float, float]]:
    """Zoom factor and view centre (world units) of a camera move at a time around the clip's middle."""
    if kind in ("zoom-in", "zoom-out"):
        return float(np.exp(CAMERA_RATE * seconds * (1 if kind == "zoom-in" else -1))), (0.0, 0.0)
    if kind in ("pan-left", "pan-right"):
        return 1.0, (CAMERA_RATE * seconds * (-1 if kind == "pan-left" else 1), 0.0)
    return 1.0, (0.0, 0.0)


def _view(background: UInt8, zoom: float, shift: tuple[float, float], size: int) -> UInt8:
    side = background.shape[0]
    if zoom == 1 and shift == (0.0, 0.0):
        first = (side - size) // 2
        return background[first : first + size, first : first + size]
    half = size / 2 / zoom
    centre_x, centre_y = side / 2 + shift[0] * size / 2, side / 2 + shift[1] * size / 2
    box = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    view = Image.fromarray(background).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(view)


def _stock_footage(frames: UInt8) -> UInt8:
    """The look of a stock-video preview: faded, soft, with a fixed watermark. Stands for WebVid."""
    size = frames.shape[1]
    mark = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mark)
    draw.text((size / 2, size / 2), "STOCK", fill=255, anchor="mm", font=ImageFont.load_default(size / 3.6))
    for row in (0.3, 0.7):
        draw.line([(0, size * row), (size, size * row)], fill=255, width=max(1, size // 40))
    cover = np.asarray(mark.filter(ImageFilter.GaussianBlur(size / 200)), dtype=np.float32)[..., None] / 255 * 0.5
    out = np.empty_like(frames)
    for index, frame in enumerate(frames):
        soft = np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(size / 110)), dtype=np.float32)
        grey = soft.mean(axis=-1, keepdims=True)
        faded = 0.8 * (0.65 * soft + 0.35 * grey) + 34
        out[index] = np.clip(faded * (1 - cover) + 255 * cover, 0, 255).astype(np.uint8)
    return out
