"""WebDataset tars: samples by key, each odd member its own rejection, and no tar that hangs or ends unsaid.

One file past 300 lines: many short cases over tars of the same few samples.
"""

import gzip
import io
import random
import tarfile
import time
from pathlib import Path

import pytest

from data_prep.problems import UNREAD
from data_prep.sources.sources import SourceRow, find_video, read_source, videos_root
from infra.errors import UserError
from tests.data_prep.sources.tars import plain, write_tar

VIDEO = b"video" * 300
BLOCK = tarfile.BLOCKSIZE


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    return folder


def sample(key: str, caption: str = "a cat") -> list[tuple[str, bytes]]:
    return [(f"{key}.mp4", VIDEO + key.encode()), (f"{key}.txt", caption.encode())]


def reasons(rows: list[SourceRow]) -> dict[str, str]:
    return {row.clip_id: row.problem.reason if row.problem else "" for row in rows}


def video_of(row: SourceRow, scratch: Path) -> bytes:
    assert row.file is not None
    with row.file.local(scratch) as path:
        return path.read_bytes()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_in_the_order_of_the_tar(shards: Path, tmp_path: Path, form: int):
    long = "p/" + "k" * 90
    members = [
        *sample("b", "a dog\nasleep"),
        ("a.json", b'{"caption": " a cat ", "width": 8}'),
        ("a.WEBM", VIDEO),
        *sample(long),
    ]
    tar = write_tar(shards / "000.tar", members, form)
    rows = read_source(tar, None)
    assert [(row.clip_id, row.source, row.caption, row.problem) for row in rows] == [
        ("000/b", "000.tar/b", "a dog asleep", None),
        ("000/a", "000.tar/a", "a cat", None),
        (f"000/{long}", f"000.tar/{long}", "a cat", None),
    ]
    assert [video_of(row, tmp_path) for row in rows] == [VIDEO + b"b", VIDEO, VIDEO + long.encode()]
    assert [row.file.suffix for row in rows if row.file] == [".mp4", ".webm", ".mp4"]
    assert videos_root(tar, None) == str(shards.resolve())


def test_stamps_are_the_tars_and_the_place(shards: Path):
    tar = write_tar(shards / "0.tar", sample("a") + sample("b"))
    first, second = (row.file for row in read_source(tar, None))
    assert first is not None
    assert second is not None
    found = tar.stat()
    assert first.stamp == f"{found.st_size}:{found.st_mtime_ns}:{first.offset}:{len(VIDEO) + 1}"
    assert first.stamp != second.stamp
    assert first.length == len(VIDEO) + 1
    write_tar(shards / "0.tar", sample("a") + sample("c"))
    assert next(row.file.stamp for row in read_source(tar, None) if row.file) != first.stamp


def test_a_text_comes_before_a_json(shards: Path):
    members = [*sample("a", "the text"), ("a.json", b'{"key": 1}'), ("b.json", b'{"key": 1}'), ("b.mp4", VIDEO)]
    rows = read_source(write_tar(shards / "0.tar", members), None)
    assert reasons(rows) == {"0/a": "", "0/b": "bad_sidecar"}
    assert rows[0].caption == "the text"


def test_folders_hidden_names_and_names_without_a_suffix_are_no_samples(shards: Path):
    path = shards / "0.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(plain("./", 0, tarfile.DIRTYPE))
        tar.addfile(plain("./p.d", 0, tarfile.DIRTYPE))
        for name, data in [("README", b"x"), ("./._a.mp4", b"x"), (".git/x.mp4", b"x"), *sample("./p.d/a")]:
            tar.addfile(plain(name, len(data)), io.BytesIO(data))
    assert reasons(read_source(path, None)) == {"0/p.d/a": ""}


def test_samples_that_are_none(shards: Path):
    members = [
        *sample("good"),
        ("lonely.txt", b"a cat"),
        ("v.left.mp4", VIDEO),
        ("two.mp4", VIDEO),
        ("two.mkv", VIDEO),
        ("twice.mp4", VIDEO),
        ("twice.mp4", VIDEO),
        ("texts.mp4", VIDEO),
        ("texts.txt", b"one"),
        ("texts.txt", b"two"),
        ("half.mp4", VIDEO),
        ("half.txt", b"\xff\xfe\xff"),
        ("large.mp4", VIDEO),
        ("large.txt", b"a" * ((1 << 20) + 1)),
        *sample("good"),
        ("/etc/abs.mp4", VIDEO),
        ("../up.mp4", VIDEO),
        ("p/../../up2.mp4", VIDEO),
        ("caf\udce9.mp4", VIDEO),
    ]
    rows = read_source(write_tar(shards / "0.tar", members), None)
    assert [(row.clip_id, row.problem.reason if row.problem else "") for row in rows] == [
        ("0/good", ""),
        ("0/lonely", "no_video"),
        ("0/v", "no_video"),
        ("0/two", "two_videos"),
        ("0/twice", "two_videos"),
        ("0/texts", "two_captions"),
        ("0/half", "bad_sidecar"),
        ("0/large", "bad_sidecar"),
        ("0/good", "duplicate_key"),
        ("0//etc/abs", "outside_folder"),
        ("0/../up", "outside_folder"),
        ("0/../up2", "outside_folder"),
        (r"0/caf\udce9", ""),
    ]
    for row in rows:
        (row.clip_id + row.source + (row.problem.message if row.problem else "")).encode()
        assert (row.file is None) == (row.problem is not None)


@pytest.mark.parametrize(
    "mode",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_only_plain_files_are_opened(shards: Path, mode: bytes):
    path = shards / "0.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        member = plain("a.mp4", 0, mode)
        member.linkname = "/etc/passwd" if mode in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        tar.addfile(member)
        tar.addfile(plain("a.txt", 5), io.BytesIO(b"a cat"))
        for name, data in sample("b"):
            tar.addfile(plain(name, len(data)), io.BytesIO(data))
    assert reasons(read_source(path, None)) == {"0/a": "no_plain_file", "0/b": ""}


def broken(shards: Path, keep: int | None = None, garbage_at: int | None = None) -> list[SourceRow]:
    """Three samples, cut to `keep` bytes or with a block of garbage."""
    path = write_tar(shards / "0.tar", sample("a") + sample("b") + sample("c"))
    data = bytearray(path.read_bytes())
    if garbage_at is not None:
        data[garbage_at : garbage_at + BLOCK] = b"\x01garbage" * (BLOCK // 8)
    path.write_bytes(data[:keep])
    return read_source(path, None)


SAMPLE_BYTES = BLOCK + 3 * BLOCK + BLOCK + BLOCK  # a header, 1,501 bytes of video, a header, a caption


@pytest.mark.parametrize(
    ("keep", "expected", "says"),
    [
        (SAMPLE_BYTES + BLOCK + 700, {"0/a": "", "0/b": "broken_tar"}, "ends within 'b.mp4'"),
        (SAMPLE_BYTES + 5 * BLOCK + 2, {"0/a": "", "0/b": "broken_tar"}, "ends within 'b.txt'"),
        (SAMPLE_BYTES, {"0/a": "", "0/byte 3072": "broken_tar"}, "without the mark of an end"),
        (SAMPLE_BYTES + 100, {"0/a": "", "0/byte 3072": "broken_tar"}, "without the mark of an end"),
    ],
)
def test_a_cut_tar_keeps_what_came_before(shards: Path, keep: int, expected: dict[str, str], says: str):
    rows = broken(shards, keep=keep)
    assert reasons(rows) == expected
    assert rows[-1].problem is not None
    assert says in rows[-1].problem.message
    assert rows[-1].problem.reason in UNREAD


def test_a_header_that_is_none_is_no_end(shards: Path):
    rows = broken(shards, garbage_at=SAMPLE_BYTES)
    assert reasons(rows) == {"0/a": "", "0/byte 3072": "broken_tar"}
    assert rows[-1].problem is not None
    assert "no header at byte 3072" in rows[-1].problem.message


def test_what_follows_the_end_is_said_to_be_there(shards: Path):
    first, second = (write_tar(shards / f"{name}.tar", sample(name)).read_bytes() for name in "ab")
    (shards / "b.tar").unlink()
    (shards / "a.tar").write_bytes(first + second)
    rows = read_source(shards / "a.tar", None)
    assert reasons(rows) == {"a/a": "", "a/byte 3072": "broken_tar"}
    assert rows[-1].problem is not None
    assert "goes on after" in rows[-1].problem.message


def test_headers_that_would_never_end(shards: Path):
    def lying(size: bytes, kind: bytes = tarfile.REGTYPE, name: str = "b.mp4") -> bytes:
        block = bytearray(plain(name, 0, kind).tobuf(tarfile.GNU_FORMAT))
        block[124:136] = size
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block)

    backwards = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256: the next member is this one
    huge = b"\x80" + b"\0" * 5 + b"\x7f" * 6
    for block in (lying(backwards), lying(backwards, tarfile.XHDTYPE), lying(huge, tarfile.XHDTYPE), lying(huge)):
        path = write_tar(shards / "0.tar", sample("a"))
        data = path.read_bytes()
        path.write_bytes(data[:SAMPLE_BYTES] + block + data[SAMPLE_BYTES:])
        began = time.process_time()
        rows = read_source(path, None)
        assert time.process_time() - began < 5
        assert rows[0].problem is None
        assert [row.problem.reason for row in rows[1:] if row.problem] == ["broken_tar"]


def test_five_hundred_broken_tars_end_in_rows_or_one_message(shards: Path):
    whole = write_tar(shards / "0.tar", sample("a") + sample("p/" + "k" * 120) + sample("c")).read_bytes()
    heads = range(0, len(whole), BLOCK)
    draw = random.Random(0)
    told = 0
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.choice(heads) + draw.randrange(BLOCK)] = draw.randrange(256)
        if draw.random() < 0.2:
            del data[draw.randrange(len(data)) :]
        (shards / "0.tar").write_bytes(data)
        try:
            rows = read_source(shards / "0.tar", None)
        except UserError:
            told += 1
            continue
        told += any(row.problem for row in rows)
        for row in rows:
            (row.clip_id + row.caption).encode()
            if row.file is not None:
                assert len(video_of(row, shards)) == row.file.size
    assert told > 100


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("0.tar", b"", "cannot be read beyond byte 0"),
        ("0.tar", b"PNG" * 1000, "cannot be read beyond byte 0"),
        ("0.tar", b"\0" * 10240, "not one row"),
        ("0.tar", gzip.compress(b"x" * 1000, mtime=0), "compressed tar"),
        ("0.tar.gz", b"x", "compressed tar"),
        ("0.tgz", b"x", "compressed tar"),
    ],
)
def test_a_tar_that_is_none(shards: Path, name: str, data: bytes, says: str):
    (shards / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as error:
        read_source(shards / name, None)
    if "compressed" in says:
        assert "gunzip" in error.value.next_step


def test_many_tars_by_folder_pattern_and_braces(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (shards / "more").mkdir()
    for name in ("000", "001", "009", "010", "more/000"):
        write_tar(shards / f"{name}.tar", sample("a"))
    whole = {f"{name}/a": "" for name in ("000", "001", "009", "010", "more/000")}
    assert reasons(read_source(shards, None)) == whole
    assert videos_root(shards, None) == str(shards.resolve())
    assert list(reasons(read_source(f"{shards}/00?.tar", None))) == ["000/a", "001/a", "009/a"]
    assert list(reasons(read_source(f"{shards}/{{009..010}}.tar", None))) == ["009/a", "010/a"]
    assert list(reasons(read_source(f"{shards}/{{more/,}}000.tar", None))) == ["more/000/a", "000/a"]
    assert list(reasons(read_source(f"{tmp_path}/*/more/*.tar", None))) == ["shards/more/000/a"]
    assert list(reasons(read_source(f"{shards}/**/000.tar", None))) == ["000/a", "more/000/a"]
    monkeypatch.chdir(shards)
    (row,) = read_source("more/*.tar", None)
    assert row.file is not None
    assert Path(row.file.address).is_absolute()
    assert (row.source, videos_root("more/*.tar", None)) == ("000.tar/a", str(shards.resolve() / "more"))
    (shards / "[1].tar").symlink_to(shards / "000.tar")
    assert reasons(read_source(shards / "[1].tar", None)) == {"[1]/a": ""}


def test_one_broken_tar_of_many_is_one_row(shards: Path):
    write_tar(shards / "0.tar", sample("a"))
    (shards / "1.tar").write_bytes(b"no tar" * 200)
    assert reasons(read_source(shards, None)) == {"0/a": "", "1/byte 0": "broken_tar"}


def test_tars_that_are_not_there(shards: Path):
    write_tar(shards / "0.tar", sample("a"))
    for source, says in (
        (shards / "1.tar", "does not exist"),
        (f"{shards}/{{0..1}}.tar", "1.tar does not exist"),
        (f"{shards}/x*.tar", "No file matches"),
    ):
        with pytest.raises(UserError, match=says):
            read_source(source, None)


def test_a_folder_of_both_kinds_is_a_question(shards: Path):
    write_tar(shards / "0.tar", sample("a"))
    (shards / "1.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"1\.tar\.gz is a compressed tar"):
        read_source(shards, None)
    (shards / "a.mp4").write_bytes(VIDEO)
    with pytest.raises(UserError, match="1 videos and 1 tars"):
        read_source(shards, None)
    (shards / "0.tar").unlink()
    assert reasons(read_source(shards, None)) == {"a.mp4": ""}


def test_a_member_is_found_again_by_its_row(shards: Path, tmp_path: Path):
    tar = write_tar(shards / "0.tar", sample("a") + sample("p/b"))
    rows = read_source(tar, None)
    root = videos_root(tar, None)
    assert [find_video(root, row.source) for row in rows] == [row.file for row in rows]
    assert find_video(root, "0.tar/c") is None
    assert find_video(root, "1.tar/a") is None
    write_tar(tmp_path / "secret.tar", sample("a"))
    assert find_video(root, "../secret.tar/a") is None
    (shards / "x.tar").mkdir()
    (shards / "x.tar" / "a.mp4").write_bytes(VIDEO)  # a folder of that name
    found = find_video(root, "x.tar/a.mp4")
    assert found is not None
    assert found.size is None


def test_a_tar_cut_after_planning_is_an_error_not_a_short_video(shards: Path, tmp_path: Path):
    tar = write_tar(shards / "0.tar", sample("a"))
    (row,) = read_source(tar, None)
    tar.write_bytes(tar.read_bytes()[: BLOCK + 100])
    with pytest.raises(OSError, match="gave 100 bytes"):
        video_of(row, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]
