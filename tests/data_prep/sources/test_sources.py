"""Tables and folders: a broken row is one broken row, text stays text, and no path leads out.

One file past 300 lines: many short cases over the same small folder.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.problems import UNREAD
from data_prep.sources.files import VideoFile
from data_prep.sources.roots import root_at
from data_prep.sources.sources import SourceRow, find_video, read_source, videos_root
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


def test_a_webvid_table_finds_its_videos_beside_it(videos: Path, monkeypatch: pytest.MonkeyPatch):
    table = videos.parent / "t.csv"
    table.write_text(HEADER + "1,,PT5S,p,a cat\n", encoding="utf-8")
    assert reasons(read_source(table, None)) == {"1": ""}
    assert videos_root(table, None) == str(videos.resolve())
    videos.rename(videos.parent / "elsewhere")
    assert reasons(read_source(table, None)) == {"1": "missing_file"}
    (videos.parent / "1.mp4").write_bytes(b"x")
    assert reasons(read_source(table, None)) == {"1": ""}  # flat, in the table's own folder
    assert videos_root(table, None) == str(videos.parent.resolve())
    monkeypatch.chdir(videos.parent)  # a --videos is relative to where the command runs
    assert reasons(read_source("t.csv", "elsewhere")) == {"1": ""}
    assert videos_root("t.csv", "elsewhere") == str(Path("elsewhere").resolve())


def test_a_missing_video_with_an_address_has_a_place_to_go(videos: Path):
    (videos / "up.mp4").symlink_to(videos.parent / "not-there.mp4")
    rows = webvid(
        videos,
        "7,http://h/7.mp4,PT5S,new_page,missing",
        "8,http://h/8.mp4,PT5S,,missing and flat",
        "9,,PT5S,p,missing without an address",
        "1,http://h/1.mp4,PT5S,p,there",
        "../../x,http://h/x.mp4,PT5S,p,outside",
        "up,http://h/up.mp4,PT5S,,a link to nothing outside",
        ",http://h/0.mp4,PT5S,p,no id",
    )
    folder = videos.resolve()
    assert [row.target for row in rows] == [folder / "new_page/7.mp4", folder / "8.mp4", None, None, None, None, None]
    assert [row.problem.reason if row.problem else "" for row in rows] == [
        "missing_file", "missing_file", "missing_file", "", "outside_folder", "outside_folder", "missing_file"
    ]  # fmt: skip
    root = root_at(str(videos))
    assert [root.target(place) for place in ("../x.mp4", "up.mp4", "")] == [None] * 3


def test_a_row_names_no_other_place(videos: Path):
    table = videos.parent / "t.jsonl"
    places = ["s3://bucket/1.mp4", "file:///etc/passwd", "http://host/1.mp4", "/etc/passwd", "videos/../../x", ""]
    table.write_text("\n".join(json.dumps({"video": place, "caption": "a cat"}) for place in places))
    rows = read_source(table, None)
    assert [row.problem.reason if row.problem else "" for row in rows] == ["outside_folder"] * 5 + ["missing_file"]


def test_a_stamp_changes_with_the_file(videos: Path):
    def stamp() -> str:
        (row,) = webvid(videos, "1,,PT5S,p,a cat")
        assert row.file is not None
        return row.file.stamp

    before = stamp()
    assert before == stamp()
    found = (videos / "p/1.mp4").stat()
    (videos / "p/1.mp4").write_bytes(b"xy")
    os.utime(videos / "p/1.mp4", ns=(found.st_atime_ns, found.st_mtime_ns))
    larger = stamp()
    (videos / "p/1.mp4").write_bytes(b"xz")
    os.utime(videos / "p/1.mp4", ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert len({before, larger, stamp()}) == 3


def test_a_video_is_found_again_by_its_row(videos: Path):
    (row,) = webvid(videos, "1,,PT5S,p,a cat")
    root = videos_root(videos.parent / "table.csv", videos)
    assert find_video(root, row.source) == row.file
    assert find_video(root, "p/none.mp4") is None
    assert find_video(root, "../secret.mp4") is None
    assert find_video(str(videos.parent / "none"), "p/1.mp4") is None


def test_addresses_of_this_machine_are_paths(videos: Path):
    table = videos.parent / "t.csv"
    table.write_text(HEADER + "1,,PT5S,p,a cat\n", encoding="utf-8")
    rows = read_source(f"file://{table}", f"file://{videos}/")
    assert rows == read_source(table, videos)
    assert rows[0].file is not None
    assert rows[0].file.address == str((videos / "p/1.mp4").resolve())
    assert read_source(f"file://{videos}/", None) == read_source(videos, None)
    assert videos_root(f"file://{videos}/", None) == str(videos.resolve())


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("3.json", b'{"caption": null}'),
        ("3.json", b'{"caption": 7}'),
        ("3.json", b'{"caption": "half \\ud800"}'),
        ("3.json", b'["a cat"]'),
        ("3.json", b"[" * 100_000),
        ("3.txt", b"caf\xe9"),
        ("3.txt", b"a " * (1 << 19) + b"cat"),
    ],
)
def test_a_sidecar_that_is_none(videos: Path, name: str, data: bytes):
    (videos / name).write_bytes(data)
    rows = {row.clip_id: row for row in read_source(videos, None)}
    assert rows["3.mp4"].problem is not None
    assert (rows["3.mp4"].problem.reason, rows["3.mp4"].caption, rows["3.mp4"].file) == ("bad_sidecar", "", None)
    rows["3.mp4"].problem.message.encode()
    assert rows["p/1.mp4"].problem is None


def test_a_sidecar_leads_nowhere_either(videos: Path):
    (videos.parent / "secret.txt").write_text("secret")
    (videos / "3.txt").symlink_to(videos.parent / "secret.txt")
    (videos / "p/1.txt").symlink_to(videos / "nothing.txt")
    rows = read_source(videos, None)
    assert reasons(rows) == {"3.mp4": "bad_sidecar", "p/1.mp4": "bad_sidecar", "p/2.mp4": ""}
    assert not any("secret" in row.caption for row in rows)


def test_a_name_that_is_no_text(videos: Path):
    (videos / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    rows = read_source(videos, None)
    assert reasons(rows) == {r"caf\udce9.mp4": "bad_name", "3.mp4": "", "p/1.mp4": "", "p/2.mp4": ""}


def test_what_is_unread_is_not_judged_by_its_caption(videos: Path):
    (videos / "3.txt").write_bytes(b"\xff")
    (videos / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    found = {row.problem.reason for row in read_source(videos, None) if row.problem}
    assert found == {"bad_sidecar", "bad_name"}
    assert found <= UNREAD
    assert "missing_file" not in UNREAD


def test_a_folder_that_cannot_be_listed(videos: Path):
    with pytest.raises(UserError, match="nothing at"):
        root_at(str(videos / "none")).names()


def test_a_parquet_with_a_broken_page(videos: Path):
    table = videos.parent / "t.parquet"
    columns = pa.table({"video": ["p/1.mp4"] * 5000, "caption": ["a cat"] * 5000})
    pq.write_table(columns, table, compression="none", use_dictionary=False)
    data = bytearray(table.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    table.write_bytes(data)
    with pytest.raises(UserError, match="not a Parquet file"):
        read_source(table, None)
