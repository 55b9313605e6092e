"""The picture and the table of the rooms in the documents are those of the imports as they are."""

import itertools
from xml.etree import ElementTree

import pytest

from infra.setup.rooms import LAYERS, MAY_IMPORT, ROOT, sources, table
from infra.setup.rooms_picture import FLOORS, PICTURE, WIDTH, Rectangle, draw, reduced, room_frames

AGAIN = "run `make rooms`"


def test_the_table_in_the_documents_is_the_declared_one():
    assert table() in (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), AGAIN


def test_the_picture_in_the_documents_is_that_of_the_imports():
    assert PICTURE.read_text(encoding="utf-8") == draw(), AGAIN


def words_and_boxes(svg: str) -> tuple[set[str], list[Rectangle]]:
    elements = list(ElementTree.fromstring(svg).iter())
    words = {word for element in elements for word in (element.text or "").split(" · ") if element.tag.endswith("text")}
    boxes = [
        Rectangle(*(float(element.attrib[name]) for name in ("x", "y", "width", "height")))
        for element in elements
        if element.attrib.get("class") == "box"
    ]
    return words, boxes


def test_the_picture_shows_every_room_and_folder_inside_its_frame():
    words, boxes = words_and_boxes(draw())
    frames = room_frames(sources())
    assert {f"{room}/" for room in frames} <= words
    assert {name for room in frames for layer in LAYERS[room] for name in layer} <= words
    for box in boxes:
        inside = [
            frame
            for frame in frames.values()
            if frame.x < box.x < box.right < frame.right and frame.y < box.y < box.bottom < frame.bottom
        ]
        assert len(inside) == 1, box
    assert all(0 < frame.x < frame.right < WIDTH for frame in frames.values())


def test_every_room_has_a_place_in_the_picture():
    assert {room for floor in FLOORS for room, _ in floor} == set(MAY_IMPORT)
    assert [sum(share for _, share in floor) for floor in FLOORS] == [pytest.approx(1)] * len(FLOORS)


def test_a_line_that_a_longer_way_replaces_is_left_out():
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_program_on_top_stands_beside_the_flows():
    frames = room_frames(sources())
    assert frames["infra/gpu_check"].y == frames["flows"].y
    assert frames["infra/gpu_check"].x > frames["flows"].right


def test_rooms_do_not_overlap():
    for one, other in itertools.combinations(room_frames(sources()).values(), 2):
        assert one.right < other.x or other.right < one.x or one.bottom < other.y or other.bottom < one.y
