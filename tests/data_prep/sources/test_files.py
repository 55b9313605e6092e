"""A video's bytes on this machine, from wherever they are; stamps that say when they have changed."""

import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pytest

from data_prep.sources.files import VideoFile, filesystem, is_remote, local_stamp, normal, remote_stamp
from infra.errors import UserError


def test_a_whole_local_file_is_read_where_it_is(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    file = VideoFile(str(path), local_stamp(path), suffix=".mp4")
    with file.local(tmp_path / "not-there") as found:
        assert found == path
    assert path.exists()
    assert file.length == 5


def test_a_part_of_a_file_is_a_copy_that_goes_away(tmp_path: Path):
    tar, scratch = tmp_path / "a.tar", tmp_path / "scratch"
    scratch.mkdir()
    data = bytes(range(256)) * 70_000  # 17 MB: more than one read
    tar.write_bytes(b"before" + data + b"after")
    file = VideoFile(str(tar), f"{local_stamp(tar)}:6:{len(data)}", 6, len(data), ".mkv")
    with pytest.raises(ZeroDivisionError), file.local(scratch) as found:
        assert (found.parent, found.suffix) == (scratch, ".mkv")
        assert found.read_bytes() == data
        raise ZeroDivisionError  # what fails while it is used is not ours to change
    assert list(scratch.iterdir()) == []
    assert file.length == len(data)
    assert tar.exists()


def test_an_empty_part_is_an_empty_file(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"x")
    with VideoFile(str(tmp_path / "a.tar"), "1:0:0:0", 0, 0).local(tmp_path) as found:
        assert found.read_bytes() == b""


@pytest.mark.parametrize(
    "file",
    [
        VideoFile("/none/a.tar", "9:9:0:5", 0, 5),
        VideoFile("memory://none/a.mp4", "5:x"),
        VideoFile("nosuch://bucket/a.mp4", "5:x"),
        VideoFile("simplecache::memory://none/a.mp4", "5:x"),
    ],
)
def test_what_cannot_be_read_is_an_oserror(tmp_path: Path, file: VideoFile):
    with pytest.raises(OSError, match="."), file.local(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_remote_file_of_another_size_has_changed(tmp_path: Path):
    system = fsspec.filesystem("memory")
    system.pipe("/files/a.mp4", b"video")
    file = VideoFile("memory://files/a.mp4", remote_stamp(system.info("/files/a.mp4")), suffix=".mp4")
    with file.local(tmp_path) as found:
        assert found.read_bytes() == b"video"
    for other in (b"vide", b"videos"):
        system.pipe("/files/a.mp4", other)
        with pytest.raises(OSError, match="changed"), file.local(tmp_path):
            pass
    system.rm("/files", recursive=True)


def test_files_travel_to_workers():
    file = VideoFile("s3://bucket/a.mp4", "5:x", 3, 4, ".mp4")
    assert pickle.loads(pickle.dumps(file)) == file


def test_a_length_is_known_or_none():
    assert VideoFile("s3://bucket/a.mp4", "17:etag").length == 17
    assert VideoFile("http://host/a.mp4", "None:date").length is None


def test_stamps_are_of_checksums_before_times():
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    elsewhere = moment.astimezone(timezone(timedelta(hours=5)))
    assert remote_stamp({"size": 5, "ETag": '"abc"', "LastModified": moment}) == "5:abc"
    assert remote_stamp({"size": 5, "LastModified": moment}) == remote_stamp({"size": 5, "LastModified": elsewhere})
    assert remote_stamp({"size": 5, "mtime": 1.5}) == "5:1.5"


def test_without_any_sign_of_change_a_file_is_always_new():
    assert remote_stamp({"size": 5}) != remote_stamp({"size": 5})


def test_addresses_in_one_spelling():
    assert [normal(place) for place in ("file:///a/b/", "/a/b//", "s3://bucket/", "s3://b/a/", "/", "s3://", "a/")] == [
        "/a/b", "/a/b", "s3://bucket", "s3://b/a", "/", "s3://", "a"
    ]  # fmt: skip
    assert [is_remote(place) for place in ("s3://b/a", "/a/b", Path("a"), "a:b")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nosuch://bucket/a", "Protocol not known: nosuch"),
        ("simplecache::s3://bucket/a", "a chain of addresses"),
        ("ssh://nobody@127.0.0.1:1/a", "127.0.0.1|paramiko"),  # unreachable, or without the package for it
    ],
)
def test_addresses_that_nothing_answers_to(address: str, says: str):
    with pytest.raises(UserError, match=says) as error:
        filesystem(address)
    assert error.value.next_step
