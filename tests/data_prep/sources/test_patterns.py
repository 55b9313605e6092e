"""Names that stand for several files."""

from pathlib import Path

import pytest

from data_prep.sources.patterns import braces, folder_of, matching


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x{,y}", ["x", "xy"]),
        ("{one}", ["{one}"]),
        ("{2..1}", []),
    ],
)
def test_braces(text: str, expected: list[str]):
    assert list(braces(text)) == expected


def test_the_folder_is_what_is_before_the_first_sign(tmp_path: Path):
    assert folder_of("/data/shards/0.tar") == "/data/shards"
    assert folder_of("/data/*/0.tar") == "/data"
    assert folder_of("/data/shards-{0..9}/x/*.tar") == "/data"
    assert folder_of("s3://bucket/a/{0..9}.tar") == "s3://bucket/a"
    assert folder_of("*.tar") == ""
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]/0.tar").write_bytes(b"")
    assert folder_of(f"{tmp_path}/a[1]/0.tar") == f"{tmp_path}/a[1]"  # a real name is no pattern


def test_matching_is_in_order_and_without_repeats(tmp_path: Path):
    for name in ("b.tar", "a.tar", "c.tar", "a.txt"):
        (tmp_path / name).write_bytes(b"")
    assert matching(f"{tmp_path}/*.tar") == ["a.tar", "b.tar", "c.tar"]
    assert matching(f"{tmp_path}/{{c,*}}.tar") == ["c.tar", "a.tar", "b.tar"]
    assert matching(f"{tmp_path}/{{z,a}}.tar") == ["z.tar", "a.tar"]  # one that is missing is for the reader to say
    assert matching(f"{tmp_path}/none*.tar") == []
