"""Tables and folders: a broken row is one broken row, text stays text, and no path leads out."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.files import VideoFile
from data_prep.sources import SourceRow, read_source
from infra.errors import UserError

HEADER = "videoid,contentUrl,duration,page_dir,name\n"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """`videos/p/1.mp4`, `videos/p/2.mp4`, `videos/3.mp4`, and a secret beside the folder."""
    folder = tmp_path / "videos"
    (folder / "p").mkdir(parents=True)
    for name in ("p/1.mp4", "p/2.mp4", "3.mp4"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    return folder


def webvid(videos: Path, *lines: str, encoding: str = "utf-8") -> list[SourceRow]:
    table = videos.parent / "table.csv"
    table.write_bytes((HEADER + "\n".join(lines) + "\n").encode(encoding))
    return read_source(table, videos)


def reasons(rows: list[SourceRow]) -> dict[str, str]:
    return {row.clip_id: row.problem.reason if row.problem else "" for row in rows}


def test_webvid_rows_are_found_by_page_or_flat(videos: Path):
    first, third = webvid(videos, '1,http://h/1.mp4,PT5S,p,"a cat, asleep"', "3,,PT5S,p,a dog")
    path = (videos / "p/1.mp4").resolve()
    file = VideoFile(str(path), f"{path.stat().st_size}:{path.stat().st_mtime_ns}", suffix=".mp4")
    assert first == SourceRow("1", "a cat, asleep", "p/1.mp4", file, None, "PT5S", "http://h/1.mp4")
    assert third.file is not None
    assert (third.source, third.file.address) == ("3.mp4", str((videos / "3.mp4").resolve()))


def test_columns_are_known_by_name(videos: Path):
    table = videos.parent / "t.csv"
    table.write_text("\ufeffname,page_idx,page_dir,videoid,duration,contentUrl\na cat,0,p,1,PT5S,\n", encoding="utf-8")
    assert [(row.clip_id, row.caption) for row in read_source(table, videos)] == [("1", "a cat")]


def test_text_stays_text(videos: Path):
    rows = webvid(videos, "007,,PT5S,p,NA", "1e5,,PT5S,p,None", "2,,PT5S,p,null")
    assert [(row.clip_id, row.caption) for row in rows] == [("007", "NA"), ("1e5", "None"), ("2", "null")]


def test_an_open_quote_is_one_broken_row(videos: Path):
    rows = webvid(
        videos,
        "1,,PT5S,p,first",
        '9,,PT5S,p,"never closed',
        '2,,PT5S,p,"quoted, second"',
        '8,,PT5S,p,"two ""words"" here"',
        '7,,PT5S,p,"over\ntwo lines"',
        "3,,PT5S,p,third",
    )
    assert [row.clip_id for row in rows] == ["1", "9", "2", "8", "7", "3"]
    assert [row.caption for row in rows] == [
        "first", "", "quoted, second", 'two "words" here', "over\ntwo lines", "third"
    ]  # fmt: skip
    assert rows[1].problem is not None
    assert rows[1].problem.reason == "malformed_row"
    assert "Line 3" in rows[1].problem.message
    assert "quote" in rows[1].problem.message


def test_too_few_and_too_many_fields(videos: Path):
    rows = webvid(videos, "1,,PT5S", "2,,PT5S,p,a cat, asleep", "3,,PT5S,p,fine")
    assert reasons(rows) == {"1": "malformed_row", "2": "malformed_row", "3": ""}


def test_bytes_that_are_no_text_spoil_their_row_only(videos: Path):
    rows = webvid(videos, "1,,PT5S,p,caf\xe9", "3,,PT5S,p,fine", encoding="latin-1")
    assert reasons(rows) == {"1": "malformed_row", "3": ""}


@pytest.mark.parametrize("clip_id", ["../../secret", "../secret", "/etc/passwd", "p/../../secret"])
def test_no_id_leads_out_of_the_folder(videos: Path, clip_id: str):
    (row,) = webvid(videos, f"{clip_id},,PT5S,p,out")
    assert row.file is None
    assert reasons([row])[clip_id] in ("outside_folder", "missing_file")
    if "secret" in clip_id:
        assert reasons([row])[clip_id] == "outside_folder"


def test_neither_does_a_page_nor_a_link(videos: Path):
    (videos / "link.mp4").symlink_to(videos.parent / "secret.mp4")
    (videos / "good.mp4").symlink_to(videos / "3.mp4")
    rows = webvid(videos, "secret,,PT5S,..,page", "link,,PT5S,,link", "good,,PT5S,,link within")
    assert reasons(rows) == {"secret": "outside_folder", "link": "outside_folder", "good": ""}


@pytest.mark.parametrize("clip_id", ["x" * 5000, "a\0b"])
def test_an_impossible_path_is_a_problem_of_its_row(videos: Path, clip_id: str):
    (row,) = webvid(videos, f"{clip_id},,PT5S,p,odd")
    assert row.file is None
    assert row.problem is not None


def test_jsonl(videos: Path):
    table = videos.parent / "clips.jsonl"
    lines = [
        json.dumps({"video": "videos/p/1.mp4", "caption": "a cat", "more": 1}),
        "{broken",
        "[1]",
        json.dumps({"video": "videos/../../x.mp4", "caption": "out"}),
        json.dumps({"video": str(videos.parent.parent / "y.mp4"), "caption": "absolute"}),
        json.dumps({"video": 7, "caption": "number"}),
        json.dumps({"video": "videos/3.mp4", "caption": "half \ud800"}),
        json.dumps({"video": "videos/p/2.mp4"}),
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    rows = read_source(table, None)
    assert [row.problem.reason if row.problem else "" for row in rows] == [
        "", "malformed_row", "malformed_row", "outside_folder", "outside_folder", "malformed_row", "malformed_row", ""
    ]  # fmt: skip
    assert (rows[0].clip_id, rows[0].source, rows[0].caption) == ("videos/p/1.mp4", "videos/p/1.mp4", "a cat")
    assert rows[1].clip_id == "line 2"
    assert rows[-1].caption == ""  # for the checks to find


def test_parquet_and_a_folder_of_its_own(videos: Path, tmp_path: Path):
    table = tmp_path / "t" / "clips.parquet"
    table.parent.mkdir()
    pq.write_table(pa.table({"video": ["p/1.mp4", None], "caption": ["a cat", "none"]}), table)
    assert reasons(read_source(table, videos)) == {"p/1.mp4": "", "line 2": "malformed_row"}


def test_folder_with_and_without_sidecars(videos: Path):
    (videos / "p/1.txt").write_text("a cat\non a mat\n", encoding="utf-8")
    (videos / "p/2.json").write_text('{"caption": "a dog"}', encoding="utf-8")
    (videos / "3.json").write_text('{"text": "?"}', encoding="utf-8")
    (videos / "a_red__boat.MOV").write_bytes(b"x")
    (videos / ".hidden.mp4").write_bytes(b"x")
    (videos / "out.mp4").symlink_to(videos.parent / "secret.mp4")
    (videos / "notes.md").write_text("no video")
    rows = {row.clip_id: row for row in read_source(videos, None)}
    assert {name: row.caption for name, row in rows.items() if row.problem is None} == {
        "p/1.mp4": "a cat on a mat",
        "p/2.mp4": "a dog",
        "a_red__boat.MOV": "a red boat",
    }
    assert {name: row.problem.reason for name, row in rows.items() if row.problem} == {
        "3.mp4": "bad_sidecar",
        "out.mp4": "outside_folder",
    }


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "t.csv",
            "videoid,contentUrl,duration,page_dir\n1,,PT5S,p\n",
            "no column 'name'; it has 'videoid', 'contentUrl'",
        ),
        ("t.csv", "", "it has none"),
        ("t.csv", HEADER, "not one row"),
        ("t.jsonl", '{"path": "1.mp4"}\n', "no column 'video', 'caption'; it has 'path'"),
        ("t.jsonl", "\n", "not one row"),
        ("t.parquet", "PAR?", "not a Parquet file"),
        ("t.xlsx", "x", "no known kind (.xlsx)"),
    ],
)
def test_a_table_that_is_none(videos: Path, name: str, text: str, says: str):
    table = videos.parent / name
    table.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_source(table, videos)
    assert says in str(error.value)


def test_what_is_not_there(videos: Path, tmp_path: Path):
    table = tmp_path / "t.csv"
    table.write_text(HEADER + "1,,PT5S,p,a cat\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for source, folder, says in (
        (tmp_path / "none.csv", videos, "does not exist"),
        (table, tmp_path / "none", "folder of videos"),
        (table, table, "is not a folder"),
        (tmp_path / "empty", None, "no video"),
    ):
        with pytest.raises(UserError) as error:
            read_source(source, folder)
        assert says in str(error.value)
