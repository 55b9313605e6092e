"""The picture and the table of the rooms in the documents are those of the imports as they are."""

from xml.etree import ElementTree

from infra.setup.rooms import LAYERS, MAY_IMPORT, ROOT, table
from infra.setup.rooms_picture import PICTURE, draw, reduced

AGAIN = "run `make rooms`"


def test_the_table_in_the_documents_is_the_declared_one():
    assert table() in (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), AGAIN


def test_the_picture_in_the_documents_is_that_of_the_imports():
    assert PICTURE.read_text(encoding="utf-8") == draw(), AGAIN


def test_the_picture_shows_every_room_and_folder():
    words = {element.text for element in ElementTree.fromstring(draw()).iter() if element.tag.endswith("text")}
    assert {f"{room}/" for room in MAY_IMPORT} <= words
    assert {name for layers in LAYERS.values() for layer in layers for name in layer} <= words


def test_a_line_that_a_longer_way_replaces_is_left_out():
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
