"""One picture of a whole benchmark: the first prompt, models down, methods across, as a looping gif."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from infra.video import UInt8, read_mp4

CELL = 128
LINE = 15
HEADER = 4 * LINE
LABEL = 22
LETTERS = 19
INK, PAPER = (38, 38, 42), (250, 249, 246)


def write_overview(folder: Path, models: dict[str, str], methods: dict[str, str], fps: float) -> Path | None:
    """`overview.gif` of sample 0 of every model and method (names to titles); None where no animation is there."""
    cells = {
        (model, method): _clip(folder / "animations" / model / method / "0000.mp4")
        for model in models
        for method in methods
    }
    lengths = [len(clip) for clip in cells.values() if clip is not None]
    if not lengths:
        return None
    width, height = len(methods) * CELL, len(models) * (CELL + LABEL) + HEADER
    pages = []
    for index in range(min(lengths)):
        page = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(page)
        for column, title in enumerate(methods.values()):
            lines = textwrap.wrap(title, LETTERS, max_lines=3, placeholder=" …")
            for line, text in enumerate(lines):
                _text(draw, (column + 0.5) * CELL, HEADER / 2 + LINE * (line - (len(lines) - 1) / 2), text)
        for row, (model, title) in enumerate(models.items()):
            top = HEADER + row * (CELL + LABEL)
            _text(draw, width / 2, top + CELL + LABEL / 2, title)
            for column, method in enumerate(methods):
                clip = cells[model, method]
                if clip is not None:
                    page.paste(Image.fromarray(clip[index]), (column * CELL, top))
        pages.append(page.quantize(256, dither=Image.Dither.NONE))
    path = folder / "overview.gif"
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0)
    return path


def _clip(path: Path) -> UInt8 | None:
    if not path.is_file():
        return None
    frames = [Image.fromarray(frame) for frame in read_mp4(path)]
    exact = all(CELL % side == 0 for side in frames[0].size)
    how = Image.Resampling.NEAREST if exact else Image.Resampling.BICUBIC
    return np.stack([np.asarray(frame.resize((CELL, CELL), how)) for frame in frames])


def _text(draw: ImageDraw.ImageDraw, x: float, y: float, text: str) -> None:
    draw.text((x, y), text, fill=INK, anchor="mm", font=ImageFont.load_default(11))
