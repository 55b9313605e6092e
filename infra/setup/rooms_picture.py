"""Draws docs/rooms.svg from the imports as they are, and writes the table of the rooms: `make rooms`.

Each room is a frame, its folders stand in their layers (`infra.setup.rooms`), the lowest at the bottom; several files
of one layer share a box. A line goes from a box to one below it that it imports, unless a longer way leads there (the
transitive reduction); between rooms likewise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from infra.setup.layered import Drawing, Item, drawing
from infra.setup.rooms import (
    LAYERS,
    MAY_IMPORT,
    ROOT,
    Graph,
    imports_of_files,
    imports_of_folders,
    sources,
    table,
    what_lives_in,
)

PICTURE = ROOT / "docs" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
FLOORS = (
    (("flows", 0.63), ("infra/gpu_check", 0.37)),
    (("evaluation", 0.4), ("data_prep", 0.6)),
    (("components", 0.66), ("infra", 0.34)),
)
"""The rooms from the top down, and their shares of the width."""

WIDTH, MARGIN, GAP = 960.0, 12.0, 40.0
PADDING, TITLE, SAYS = 18.0, 24.0, 16.0
LINE, BOX_PADDING, BOX_GAP, LAYER_GAP, LAYER_GAP_MAX = 17.0, 12.0, 20.0, 24.0, 48.0
LETTER = 7.4
"""Pixels that a letter takes in a box."""
NAMES_SHARE = 0.72
"""Of a room's width, that the names in a box may take before they go on in a new line."""

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 17px; font-weight: 600 } .says { font-size: 12px; fill: #59636e }
  .room { fill: #f6f8fa; stroke: #d1d9e0 } .box { fill: #fff; stroke: #818b98 }
  .line { fill: none; stroke: #818b98; stroke-width: 1.2 } .head { fill: #818b98 }
  .way { fill: none; stroke: #0969da; stroke-width: 2.5; stroke-linecap: round; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .says { fill: #9198a1 } .room { fill: #151b23; stroke: #3d444d }
    .box { fill: #0d1117; stroke: #656c76 } .line { stroke: #656c76 } .head { fill: #656c76 }
    .way { stroke: #4493f8 }
  }
"""


@dataclass(frozen=True)
class Rectangle:
    """In pixels, from the left and from the top."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def svg(self, kind: str) -> str:
        size = f'width="{self.width:.0f}" height="{self.height:.0f}"'
        return f'<rect class="{kind}" x="{self.x:.0f}" y="{self.y:.0f}" {size} rx="6"/>'


@dataclass(frozen=True)
class Box:
    """A folder, or the files of one layer, and how they are written."""

    names: tuple[str, ...]
    lines: list[str]

    @property
    def width(self) -> float:
        return max(map(len, self.lines)) * LETTER + 22

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + BOX_PADDING


Layers = list[dict[str, Box]]
"""The boxes of a room by name, the lowest layer first."""


def draw() -> str:
    """The picture as SVG."""
    files = sources()
    edges = reduced(imports_of_folders(imports_of_files(files)))
    frames = room_frames(files)
    height = max(frame.bottom for frame in frames.values()) + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        'aria-label="The rooms of the project, their layers, and what imports what">',
        f"<style>{STYLE}</style>",
    ]
    for room, frame in frames.items():
        lines += _room(room, frame, says(room, files, frame.width), edges)
    return "\n".join([*lines, *ways_between(frames), "</svg>", ""])


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The graph without edges that a longer way replaces."""
    below: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in below:
            below[name] = set()
            for wanted in graph.get(name, ()):
                below[name] |= {wanted} | reach(wanted)
        return below[name]

    return {
        name: {wanted for wanted in all_wanted if not any(wanted in reach(other) for other in all_wanted - {wanted})}
        for name, all_wanted in graph.items()
    }


def boxes_of(room: str, width: float) -> Layers:
    """Each folder has a box; so has a file, but several files of one layer share one."""
    layers: Layers = []
    for layer in LAYERS[room]:
        files = tuple(name for name in layer if name.endswith(".py"))
        boxes = {name: Box((name,), [name]) for name in layer if name not in files}
        layers.append({files[0]: Box(files, _written(files, width)), **boxes} if files else boxes)
    return layers


def _written(names: Sequence[str], width: float) -> list[str]:
    letters = int((width - 2 * PADDING) * NAMES_SHARE / LETTER)
    lines = wrap(" ".join(f"{name}·" for name in names), letters, break_long_words=False)
    return [line.replace("·", " ·").rstrip(" ·") for line in lines]


def room_frames(files: Mapping[str, str]) -> dict[str, Rectangle]:
    """Where each room stands; the rooms of a floor are equally high."""
    frames: dict[str, Rectangle] = {}
    y = MARGIN
    for floor in FLOORS:
        widths = [(WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) * share for _, share in floor]
        height = max(
            _head(says(room, files, width)) + _least_height(boxes_of(room, width)) + PADDING
            for (room, _), width in zip(floor, widths, strict=True)
        )
        x = MARGIN
        for (room, _), width in zip(floor, widths, strict=True):
            frames[room] = Rectangle(x, y, width, height)
            x += width + GAP
        y += height + GAP
    return frames


def says(room: str, files: Mapping[str, str], width: float) -> list[str]:
    """The lines under a room's name."""
    return wrap(what_lives_in(room, files).replace("`", ""), int((width - 2 * PADDING) / LETTER * 1.1))


def layer_heights(layers: Layers) -> list[float]:
    return [max(box.height for box in layer.values()) for layer in layers]


def _least_height(layers: Layers) -> float:
    return sum(layer_heights(layers)) + LAYER_GAP * (len(layers) - 1)


def _head(lines: Sequence[str]) -> float:
    return PADDING + TITLE + SAYS * len(lines) + 8


def ways_between(frames: Mapping[str, Rectangle]) -> Iterator[str]:
    """A thick line from each room to those that it may import, unless a longer way leads there."""
    for room, wanted in reduced({room: set(MAY_IMPORT[room]) & set(frames) for room in frames}).items():
        for other in sorted(wanted):
            one, two = frames[room], frames[other]
            left, right = max(one.x, two.x), min(one.right, two.right)
            if left < right:
                way = f"M{(left + right) / 2:.0f} {one.bottom + 6:.0f} V{two.y - 7:.0f} m-6 -7 l6 7 l6 -7"
            else:
                middle = (max(one.y, two.y) + min(one.bottom, two.bottom)) / 2
                way = f"M{one.right + 6:.0f} {middle:.0f} H{two.x - 7:.0f} m-7 -6 l7 6 l-7 6"
            yield f'<path class="way" d="{way}"/>'


def _room(room: str, frame: Rectangle, sentence: Sequence[str], edges: Graph) -> Iterator[str]:
    yield frame.svg("room")
    x, y = frame.x + PADDING, frame.y + PADDING + 12
    yield f'<text class="title" x="{x:.0f}" y="{y:.0f}">{room}/</text>'
    for number, line in enumerate(sentence, 1):
        yield f'<text class="says" x="{x:.0f}" y="{y + 5 + SAYS * number:.0f}">{escape(line)}</text>'
    layers = boxes_of(room, frame.width)
    plan = _plan(room, layers, edges)
    places = _places(frame, layers, plan, _head(sentence))
    for upper, lower in plan.ties:
        yield _line(places[upper], places[lower], ends=lower[0] in layers[lower[1]])
    for (name, number), place in places.items():
        if box := layers[number].get(name):
            yield place.svg("box")
            top = place.y + (place.height - LINE * len(box.lines)) / 2 + 13
            for count, line in enumerate(box.lines):
                middle = f'x="{place.x + place.width / 2:.0f}" text-anchor="middle"'
                yield f'<text {middle} y="{top + LINE * count:.0f}">{line}</text>'
        else:
            yield f'<path class="line" d="M{place.x:.0f} {place.y:.0f} V{place.bottom:.0f}"/>'


def _plan(room: str, layers: Layers, edges: Graph) -> Drawing:
    box_of = {name: title for layer in layers for title, box in layer.items() for name in box.names}
    lines: dict[str, set[str]] = {}
    for name, box in box_of.items():
        wanted = (other.removeprefix(f"{room}/") for other in edges.get(f"{room}/{name}", ()))
        lines.setdefault(box, set()).update(box_of[other] for other in wanted if other in box_of)
    return drawing([{name: box.width for name, box in layer.items()} for layer in layers], lines, BOX_GAP)


def _places(frame: Rectangle, layers: Layers, plan: Drawing, head: float) -> dict[Item, Rectangle]:
    """Where boxes and bends stand: the drawing in the middle of its frame, its layers spread over the height."""
    heights = layer_heights(layers)
    widths = {(name, number): box.width for number, layer in enumerate(layers) for name, box in layer.items()}
    ends = [(x, widths.get(item, 0.0) / 2) for item, x in plan.middles.items()]
    shift = frame.x + frame.width / 2 - (min(x - half for x, half in ends) + max(x + half for x, half in ends)) / 2
    left_over = frame.height - head - PADDING - sum(heights)
    gap = min(left_over / max(1, len(layers) - 1), LAYER_GAP_MAX)
    y = frame.bottom - PADDING - (left_over - gap * (len(layers) - 1)) / 2
    places: dict[Item, Rectangle] = {}
    for row, height in zip(plan.rows, heights, strict=True):
        for item in row:
            width = widths.get(item, 0.0)
            places[item] = Rectangle(plan.middles[item] + shift - width / 2, y - height, width, height)
        y -= height + gap
    return places


def _line(upper: Rectangle, lower: Rectangle, ends: bool) -> str:
    """From the bottom of one box or bend to the top of another, with a head where it ends there."""
    x, y, to_x, to_y = upper.x + upper.width / 2, upper.bottom, lower.x + lower.width / 2, lower.y - 5 * ends
    bend = (to_y - y) / 2
    curve = f"M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"
    head = f'<path class="head" d="M{to_x - 4:.0f} {to_y - 2:.0f} h8 l-4 7 z"/>' if ends else ""
    return f'<path class="line" d="{curve}"/>{head}'


def main() -> None:
    PICTURE.write_text(draw(), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    start = page.index(table().partition("\n")[0])
    end = page.index("\n\n", start)
    PAGE.write_text(page[:start] + table() + page[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
