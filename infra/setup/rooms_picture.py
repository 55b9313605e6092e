"""Draws docs/rooms.svg from the imports as they are, and writes the table of the rooms: `make rooms`.

Each room is a box, its folders stand in their layers (`infra.setup.rooms`), lowest at the bottom. A line goes from a
folder to one below it that it imports, unless another line leads there already (the transitive reduction).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from infra.setup.rooms import LAYERS, ROOT, Graph, imports_of_files, imports_of_folders, sources, table, what_lives_in

PICTURE = ROOT / "docs" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
PLACES = {
    "flows": (0, 0, 2),
    "data_prep": (1, 0, 1),
    "evaluation": (1, 1, 1),
    "components": (2, 0, 2),
    "infra": (3, 0, 2),
}
"""Row, column and columns of each room in the picture."""

WIDTH, MARGIN, GAP = 1180, 24, 40
BOX_HEIGHT, LAYER_GAP, BOX_GAP, HEAD = 30, 26, 16, 62
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 18px; font-weight: 600 } .says { font-size: 12px; fill: #59636e }
  .room { fill: #f6f8fa; stroke: #d1d9e0 } .box { fill: #fff; stroke: #818b98 }
  .line { fill: none; stroke: #818b98; stroke-width: 1.1 } .way { fill: none; stroke: #0969da; stroke-width: 3 }
  .head { fill: #818b98 } .wayhead { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .says { fill: #9198a1 } .room { fill: #151b23; stroke: #3d444d }
    .box { fill: #0d1117; stroke: #656c76 } .line { stroke: #656c76 } .head { fill: #656c76 }
    .way { stroke: #4493f8 } .wayhead { fill: #4493f8 }
  }
"""


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


def draw() -> str:
    """The picture as SVG."""
    files = sources()
    edges = reduced(imports_of_folders(imports_of_files(files)))
    rooms = room_boxes()
    height = max(box.bottom for box in rooms.values()) + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        'aria-label="The rooms of the project and what imports what">',
        f"<style>{STYLE}</style>",
        *(f'<path class="way" d="{way}"/>' for way in ways_between(rooms)),
    ]
    for room, box in rooms.items():
        lines += _room(room, box, what_lives_in(room, files), edges)
    return "\n".join([*lines, "</svg>", ""])


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


def room_boxes() -> dict[str, Box]:
    """Where each room stands."""
    column = (WIDTH - 2 * MARGIN - GAP) / 2
    boxes: dict[str, Box] = {}
    y = float(MARGIN)
    for row in sorted({place[0] for place in PLACES.values()}):
        here = [room for room, place in PLACES.items() if place[0] == row]
        height = max(len(LAYERS[room]) for room in here) * (BOX_HEIGHT + LAYER_GAP) - LAYER_GAP + HEAD + MARGIN
        for room in here:
            _, first, columns = PLACES[room]
            boxes[room] = Box(MARGIN + first * (column + GAP), y, columns * column + (columns - 1) * GAP, height)
        y += height + GAP
    return boxes


def ways_between(rooms: dict[str, Box]) -> Iterator[str]:
    """A thick line from each room to the ones right below it."""
    rows = sorted({place[0] for place in PLACES.values()})
    for upper, lower in pairwise(rows):
        for room, box in rooms.items():
            for other, under in rooms.items():
                if PLACES[room][0] == upper and PLACES[other][0] == lower:
                    x = box.middle if box.width < under.width else under.middle
                    yield f"M{x:.0f} {box.bottom:.0f} V{under.y - 8:.0f} m-6 -7 l6 8 l6 -8"


def _room(room: str, box: Box, says: str, edges: Graph) -> Iterator[str]:
    yield _rectangle("room", box)
    yield f'<text class="title" x="{box.x + 18:.0f}" y="{box.y + 28:.0f}">{room}/</text>'
    yield f'<text class="says" x="{box.x + 18:.0f}" y="{box.y + 47:.0f}">{escape(says)}</text>'
    boxes = dict(folder_boxes(room, box))
    for name, own in boxes.items():
        for wanted in sorted(edges.get(f"{room}/{name}", ())):
            if wanted.startswith(f"{room}/"):
                yield _line(own, boxes[wanted.partition("/")[2]])
    for name, own in boxes.items():
        yield _rectangle("box", own)
        yield f'<text x="{own.middle:.0f}" y="{own.y + 20:.0f}" text-anchor="middle">{name}</text>'


def _rectangle(kind: str, box: Box) -> str:
    size = f'width="{box.width:.0f}" height="{box.height:.0f}"'
    return f'<rect class="{kind}" x="{box.x:.0f}" y="{box.y:.0f}" {size} rx="6"/>'


def _line(start: Box, end: Box) -> str:
    """From the bottom of one box to the top of another, with a head."""
    x, y, to_x, to_y = start.middle, start.bottom, end.middle, end.y
    bend = max(14.0, (to_y - y) / 2)
    curve = f"M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y - 5:.0f}"
    return f'<path class="line" d="{curve}"/><path class="head" d="M{to_x - 4:.0f} {to_y - 7:.0f} h8 l-4 7 z"/>'


def folder_boxes(room: str, box: Box) -> Iterator[tuple[str, Box]]:
    """Where each folder stands in its room, the lowest layer at the bottom."""
    y = box.bottom - MARGIN - BOX_HEIGHT
    for number, layer in enumerate(LAYERS[room]):
        widths = [7.4 * len(name) + 26 for name in layer]
        x = box.middle - (sum(widths) + BOX_GAP * (len(layer) - 1)) / 2
        x += (-1) ** number * 0.06 * box.width if len(layer) == 1 else 0  # so that no line hides behind a box
        for name, width in zip(layer, widths, strict=True):
            yield name, Box(x, y, width, BOX_HEIGHT)
            x += width + BOX_GAP
        y -= BOX_HEIGHT + LAYER_GAP


def main() -> None:
    PICTURE.write_text(draw(), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    start = page.index(table().partition("\n")[0])
    end = page.index("\n\n", start)
    PAGE.write_text(page[:start] + table() + page[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
