"""Downloads from a real server on loopback that stalls, breaks off, redirects and lies."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.addresses import Network, check_video, is_public, retry_after, shown, web_url
from data_prep.download import DownloadConfig, Failure, Undone, Wanted, download
from infra.errors import WorkError
from infra.video import write_mp4
from tests.data_prep import lying_server as lie
from tests.data_prep.conftest import Write, noise_frames
from tests.data_prep.lying_server import HTML, Answer, LyingServer, Names, breaking, honest, status

CUT = 50_000
REST = f"bytes={CUT}-"
QUICK = DownloadConfig(
    allow_private=True, retry_seconds=0.01, retry_seconds_max=0.05, connect_seconds=2, read_seconds=0.4
)
ONCE = QUICK.replace(attempts=1)
Answers = Callable[[bytes, bytes], list[Answer]]


class Web:
    """A server, a folder, and two real videos of more than 150 kB."""

    def __init__(self, server: LyingServer, folder: Path, video: bytes, other: bytes) -> None:
        self.server, self.folder, self.video, self.other = server, folder, video, other
        self.target, self.url = folder / "v.mp4", f"{server.url}/v.mp4"

    def fetch(self, *answers: Answer, config: DownloadConfig = QUICK) -> Undone | None:
        """Fetches /v.mp4, whose requests get these answers."""
        self.server.answers["/v.mp4"] = list(answers)
        return self.get(self.url, config)

    def get(self, url: str, config: DownloadConfig = QUICK, network: Network | None = None) -> Undone | None:
        result = download([Wanted(url, self.target)], config, network)
        assert list(result) == [self.target]
        assert self.target.exists() == (result[self.target] is None)
        return result[self.target]

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def has(self, data: bytes) -> bool:
        """The file is these bytes, and nothing lies beside it."""
        return self.files() == {"v.mp4": data}


def told(undone: Undone | None) -> tuple[str, str]:
    assert undone is not None
    return undone.reason, undone.message


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Two real mp4 of noise."""
    written = []
    for seed in range(2):
        path = tmp_path_factory.mktemp("video") / "video.mp4"
        write_mp4(path, np.random.default_rng(seed).integers(0, 256, (24, 96, 128, 3), dtype=np.uint8), fps=8)
        written.append(path.read_bytes())
    assert all(3 * CUT < len(data) < 20 * CUT for data in written), [len(data) for data in written]
    return written


@pytest.fixture
def web(tmp_path: Path, videos: list[bytes]) -> Iterator[Web]:
    (tmp_path / "videos").mkdir()
    with LyingServer() as server:
        yield Web(server, tmp_path / "videos", *videos)


# --- The plain case ---


def test_a_video_comes_whole_and_leaves_nothing_else(web: Web):
    assert web.fetch(honest(web.video)) is None
    assert web.has(web.video)
    assert web.server.asked[0].headers["Accept-Encoding"] == "identity"
    assert web.server.asked[0].headers["Host"] == f"127.0.0.1:{web.server.port}"


def test_a_file_that_is_there_is_not_asked_for(web: Web):
    web.target.write_bytes(b"whole before")
    assert web.fetch(honest(web.video)) is None
    assert web.server.asked == []
    assert web.has(b"whole before")


def test_two_rows_with_one_path_are_fetched_once(web: Web):
    web.server.answers = {"/a": [honest(web.video)], "/b": [honest(web.other)]}
    assert download([Wanted(f"{web.server.url}/{name}", web.target) for name in "aab"], QUICK) == {web.target: None}
    assert [asked.path for asked in web.server.asked] == ["/a"]
    assert web.has(web.video)


def test_files_at_a_time_are_bounded(web: Web):
    web.server.answers = {f"/{number}": [lie.slow(web.video, 0.1)] for number in range(12)}
    wanted = [Wanted(web.server.url + path, web.folder / "page" / f"{path[1:]}.mp4") for path in web.server.answers]
    result = download(wanted, QUICK.replace(concurrency=3))
    assert list(result.items()) == [(item.path, None) for item in wanted]
    assert web.server.most_at_once == 3


def test_one_line_and_a_bar_say_how_it_went(
    web: Web, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    web.server.answers = {"/a": [honest(web.video)], "/page": [honest(HTML)]}
    (web.folder / "c.mp4").write_bytes(web.video)
    names = ["a", "page", "missing", "c"]
    with caplog.at_level(logging.INFO, "animateflow"):
        result = download([Wanted(f"{web.server.url}/{name}", web.folder / f"{name}.mp4") for name in names], QUICK)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "animateflow.data_prep"]
    assert line.startswith(f"Videos from the web: 1 fetched, {(len(web.video) + len(HTML)) / 1e6:.1f} MB in ")
    assert line.endswith("; 1 were there; 2 not fetched, 1 download_http_status, 1 download_not_video")
    reasons = [undone.reason if undone else None for undone in result.values()]
    assert reasons == [None, "download_not_video", "download_http_status", None]
    assert "Downloading: 100%" in capsys.readouterr().err


def test_inside_a_running_loop_as_in_a_notebook(web: Web):
    async def cell() -> Undone | None:
        return web.fetch(honest(web.video))

    assert asyncio.run(cell()) is None


def test_the_environments_proxy_is_not_used(web: Web, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert web.fetch(honest(web.video)) is None


def test_how_to_download_does_not_change_what_is_made():
    assert QUICK.fingerprint() == DownloadConfig().fingerprint()


# --- Going on ---


def rest_of(data: bytes, first: int = CUT, etag: str = '"one"') -> Answer:
    return lie.partial(data[first:], range_of(data, first), etag)


def range_of(data: bytes, first: int = CUT, end: int = 0) -> str:
    return f"bytes {first}-{(end or len(data)) - 1}/{len(data)}"


AFTER_A_BREAK: dict[str, tuple[Answers, list[str | None]]] = {
    "closed": (lambda v, o: [breaking(v, CUT), honest(v)], [None, REST]),
    "reset": (lambda v, o: [breaking(v, CUT, reset=True), honest(v)], [None, REST]),
    "stalled": (lambda v, o: [lie.stalling(v, CUT), honest(v)], [None, REST]),
    "chunked": (lambda v, o: [lie.chunked(v[:CUT], end=False, etag='"one"'), honest(v)], [None, REST]),
    "twice": (lambda v, o: [breaking(v, CUT), lie.continuing(v, 99_999), honest(v)], [None, REST, "bytes=99999-"]),
    "busy": (lambda v, o: [breaking(v, CUT), status(503), honest(v)], [None, REST, REST]),
    "no ranges": (lambda v, o: [breaking(v, CUT), honest(v, ranges=False)], [None, REST]),
    "range from 0": (lambda v, o: [breaking(v, CUT), rest_of(v, 0), honest(v)], [None, REST, None]),
    "range from before": (lambda v, o: [breaking(v, CUT), rest_of(v, CUT - 1), honest(v)], [None, REST, None]),
    "range from behind": (lambda v, o: [breaking(v, CUT), rest_of(v, CUT + 1), honest(v)], [None, REST, None]),
    "no range": (lambda v, o: [breaking(v, CUT), lie.partial(v[CUT:], ""), honest(v)], [None, REST, None]),
    "short range": (
        lambda v, o: [breaking(v, CUT), lie.partial(v[CUT:99_999], range_of(v, CUT, 99_999)), honest(v)],
        [None, REST, "bytes=99999-"],
    ),
    "long range": (
        lambda v, o: [breaking(v, CUT), lie.partial(v[CUT:] + b"more", range_of(v)), honest(v)],
        [None, REST, None],
    ),
    "all, called a range": (lambda v, o: [breaking(v, CUT), lie.partial(v, range_of(v), code=200)], [None, REST]),
    "range not given": (lambda v, o: [breaking(v, CUT), status(416), honest(v)], [None, REST, None]),
    "another file": (lambda v, o: [breaking(o, CUT), honest(v, '"two"')], [None, REST]),
    "another file's rest": (
        lambda v, o: [breaking((o + v)[: len(v)], CUT), rest_of(v, etag='"two"'), honest(v, '"two"')],
        [None, REST, None],
    ),
    "another size's rest": (lambda v, o: [breaking(o + b"x", CUT), rest_of(v), honest(v)], [None, REST, None]),
    "no etag": (lambda v, o: [breaking(v, CUT, None), honest(v, None)], [None, None]),
    "weak etag": (lambda v, o: [breaking(v, CUT, 'W/"one"'), honest(v, 'W/"one"')], [None, None]),
    "foreign etag": (lambda v, o: [breaking(v, CUT, '"é"'), honest(v, '"é"')], [None, None]),
    "old date": (lambda v, o: [breaking(v, CUT, None, OLD), honest(v, None, OLD)], [None, REST]),
    "new date": (lambda v, o: [breaking(v, CUT, None, NEW), honest(v, None, NEW)], [None, None]),
}
OLD, NEW = lie.days_ago(2), lie.days_ago(0)


@pytest.mark.parametrize("case", AFTER_A_BREAK)
def test_a_file_that_broke_off_is_continued_or_begun_anew_and_never_a_mixture(web: Web, case: str):
    answers, ranges = AFTER_A_BREAK[case]
    assert web.fetch(*answers(web.video, web.other)) is None
    assert web.has(web.video)
    assert web.server.ranges() == ranges
    conditions = [asked.headers["If-Range"] for asked in web.server.asked]
    assert conditions == [(OLD if case == "old date" else '"one"') if asked else None for asked in ranges]


def test_a_body_shorter_than_announced_is_never_done(web: Web):
    size = len(web.video)
    reason, message = told(web.fetch(breaking(web.video + b"more", size), config=QUICK.replace(attempts=3)))
    assert reason == "download_truncated"
    assert f"ended after {size} bytes, and the server announced {size + 4}. Given up after 3 attempts." in message
    assert len(web.server.asked) == 3
    assert set(web.files()) == {".v.mp4.part", ".v.mp4.part.json"}


def test_a_later_call_goes_on(web: Web):
    assert told(web.fetch(breaking(web.video, CUT), config=ONCE))[0] == "download_truncated"
    assert web.fetch(breaking(web.video, CUT), honest(web.video)) is None
    assert web.has(web.video)
    assert web.server.ranges() == [None, REST]


def test_a_part_of_another_address_is_not_continued(web: Web):
    web.server.answers = {"/a": [breaking(web.video, CUT)], "/b": [honest(web.other)]}
    told(web.get(f"{web.server.url}/a", ONCE))
    assert web.get(f"{web.server.url}/b") is None
    assert web.server.ranges("/b") == [None]
    assert web.has(web.other)


@pytest.mark.parametrize("note", ["", "{", "[]", '{"surprise": 1}'])
def test_a_part_with_a_broken_note_is_not_continued(web: Web, note: str):
    (web.folder / ".v.mp4.part").write_bytes(b"rubbish")
    (web.folder / ".v.mp4.part.json").write_text(note)
    assert web.fetch(honest(web.video)) is None
    assert web.server.ranges() == [None]
    assert web.has(web.video)


def test_a_part_that_was_whole_when_killed_needs_no_request(web: Web):
    (web.folder / ".v.mp4.part").write_bytes(web.video)
    note = {"url": web.url, "etag": "", "modified": "", "size": len(web.video)}
    (web.folder / ".v.mp4.part.json").write_text(json.dumps(note))
    assert web.fetch(honest(web.other)) is None
    assert web.server.asked == []
    assert web.has(web.video)


def test_two_processes_do_not_write_one_part(web: Web):
    with (web.folder / ".v.mp4.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        reason, message = told(web.fetch(honest(web.video)))
        assert reason == "download_failed"
        assert message.startswith("Another process fetches")
        assert web.files() == {".v.mp4.part": b""}
    assert web.server.asked == []
    assert web.fetch(honest(web.video)) is None


SCRIPT = """
import sys
from pathlib import Path
from data_prep.download import DownloadConfig, Wanted, download
download([Wanted(sys.argv[1], Path(sys.argv[2]))], DownloadConfig(allow_private=True, read_seconds=60))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_continued_by_the_next(web: Web, how: signal.Signals):
    web.server.answers["/v.mp4"] = [lie.stalling(web.video, 2 * CUT), honest(web.video)]
    part = web.folder / ".v.mp4.part"
    command = [sys.executable, "-c", SCRIPT, web.url, str(web.target)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        try:
            until = time.monotonic() + 30
            while not (part.exists() and part.stat().st_size > CUT) and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(0.1)
            process.send_signal(how)
            _, errors = process.communicate(timeout=5)
        finally:
            process.kill()
    assert process.returncode == -how, errors.decode()
    there = part.stat().st_size
    assert CUT < there <= 2 * CUT
    assert not web.target.exists()
    assert web.get(web.url) is None
    assert web.has(web.video)
    assert web.server.ranges() == [None, f"bytes={there}-"]


# --- Another attempt, or none ---


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(web: Web, code: int):
    assert web.fetch(status(code), status(code), honest(web.video)) is None
    assert len(web.server.asked) == 3
    assert web.has(web.video)


def test_what_does_not_pass_is_given_up(web: Web):
    message = f"{web.url} answers 503 Service Unavailable. Given up after 4 attempts."
    assert told(web.fetch(status(503), config=QUICK.replace(attempts=4))) == ("download_http_status", message)
    assert len(web.server.asked) == 4
    assert web.files() == {}


def test_the_server_says_how_long_to_wait(web: Web):
    started = time.monotonic()
    config = QUICK.replace(retry_seconds_max=5)
    assert web.fetch(status(429, Retry_After="1"), honest(web.video), config=config) is None
    assert 1.0 <= time.monotonic() - started < 3.0


@pytest.mark.parametrize("said", ["86400", lie.days_ago(-1), "9" * 400], ids=["day", "date", "forever"])
def test_the_server_cannot_make_it_wait_for_long(web: Web, said: str):
    started = time.monotonic()
    assert web.fetch(status(429, Retry_After=said), honest(web.video)) is None
    assert time.monotonic() - started < 2.0


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("120") == 120
    assert retry_after(lie.days_ago(-1)) == pytest.approx(86_400, abs=2)
    assert [retry_after(value) for value in ("", "soon", "-3", "²")] == [0, 0, 0, 0]


def test_waits_double_up_to_a_limit(web: Web):
    moments: list[float] = []

    def failing(asked: Any) -> None:
        moments.append(time.monotonic())
        status(500)(asked)

    told(web.fetch(failing, config=QUICK.replace(retry_seconds=0.1, retry_seconds_max=0.3)))
    for wait, shortest, longest in zip(np.diff(moments), (0.05, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.3), strict=True):
        assert shortest <= wait < longest + 0.15


@pytest.mark.parametrize("code", [204, 304, 400, 401, 403, 404, 410, 418])
def test_what_stays_is_not_tried_again(web: Web, code: int):
    reason, message = told(web.fetch(status(code), honest(web.video)))
    assert reason == "download_http_status"
    assert message.startswith(f"{web.url} answers {code}")
    assert len(web.server.asked) == 1
    assert web.files() == {}


def test_what_is_gone_takes_its_part_along(web: Web):
    assert "404" in told(web.fetch(breaking(web.video, CUT), status(404)))[1]
    assert web.files() == {}


@pytest.mark.parametrize("answer", [lie.silent(), lie.steady(bytes(4000), 1, 0.02)], ids=["silent", "dripping"])
def test_who_keeps_it_waiting_is_left(web: Web, answer: Answer):
    started = time.monotonic()
    assert told(web.fetch(answer, config=QUICK.replace(attempts=2, connect_seconds=0.3)))[0] == "download_timeout"
    assert time.monotonic() - started < 4.0


def test_a_slow_file_is_not_a_stall(web: Web):
    """Longer than the time limits in all, but there is always progress."""
    started = time.monotonic()
    config = ONCE.replace(connect_seconds=0.3)
    assert web.fetch(lie.steady(web.video, len(web.video) // 5, 0.25), config=config) is None
    assert time.monotonic() - started > config.connect_seconds + config.read_seconds
    assert web.has(web.video)


def test_nobody_listens(web: Web):
    with LyingServer() as gone:
        url = f"{gone.url}/v.mp4"
    reason, message = told(web.get(url, QUICK.replace(attempts=2)))
    assert reason == "download_failed"
    assert message.startswith(f"{url} could not be fetched: ")
    assert message.endswith("Given up after 2 attempts.")


@pytest.mark.parametrize(("error", "attempts"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_no_such_host_stays_and_no_name_server_may_pass(web: Web, error: int, attempts: int):
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        raise socket.gaierror(error, "Not known")

    undone = web.get("http://host.invalid/v.mp4", QUICK.replace(attempts=3), Network(resolve=resolve))
    assert told(undone)[0] == "download_failed"
    assert told(undone)[1].startswith("The host of http://host.invalid/v.mp4 was not found: Not known.")
    assert asked == ["host.invalid"] * attempts


def test_a_full_disk_stops_everything(web: Web):
    web.server.answers = {"/a": [honest(web.video)], "/b": [lie.stalling(web.video, CUT)]}
    (web.folder / ".a.mp4.part").symlink_to("/dev/full")
    wanted = [Wanted(f"{web.server.url}/{name}", web.folder / f"{name}.mp4") for name in "ab"]
    with pytest.raises(WorkError, match=r"a\.mp4 cannot be written: No space left on device"):
        download(wanted, QUICK.replace(read_seconds=60))


def test_a_place_that_cannot_be_written_costs_that_file_only(web: Web):
    web.server.answers["/v.mp4"] = [honest(web.video)]
    (web.folder / "file").write_text("no folder")
    (web.folder / "folder.mp4").mkdir()
    bad = [web.folder / "file" / "v.mp4", web.folder / ("n" * 250 + ".mp4"), web.folder / "folder.mp4"]
    result = download([Wanted(web.url, path) for path in [*bad, web.target]], QUICK)
    assert result[web.target] is None
    for path in bad:
        assert told(result[path])[0] == "download_failed"
        assert told(result[path])[1].startswith(f"{path} cannot be written: ")


# --- What is no video, or too much of it ---


@pytest.mark.parametrize("kind", ["video/mp4", "text/html; charset=utf-8"])
def test_a_page_is_no_video_whatever_the_server_says(web: Web, kind: str):
    message = f"{web.url} is no video: it is an HTML page, and the server calls it {kind}."
    assert told(web.fetch(honest(HTML, kind=kind), honest(web.video))) == ("download_not_video", message)
    assert len(web.server.asked) == 1
    assert web.files() == {}


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/plain", None])
def test_a_video_is_one_whatever_the_server_says(web: Web, kind: str | None):
    assert web.fetch(honest(web.video, kind=kind)) is None
    assert web.has(web.video)


PATIENT = QUICK.replace(read_seconds=60)  # whoever waits for such an answer's end is late
REFUSED: dict[str, tuple[Answers, DownloadConfig, str]] = {
    "a long page": (lambda v, o: [lie.stalling(HTML * 100, 2000)], PATIENT, "download_not_video"),
    "too large, it says": (lambda v, o: [lie.stalling(v, 0)], PATIENT.replace(bytes_max=CUT), "download_too_large"),
    "too large, it shows": (lambda v, o: [lie.chunked(v)], QUICK.replace(bytes_max=CUT), "download_too_large"),
    "packed": (lambda v, o: [honest(v, encoding="gzip")], QUICK, "download_not_video"),
    "of no length": (lambda v, o: [lie.until_closed(v)], QUICK, "download_truncated"),
    "chunks without end": (lambda v, o: [lie.chunked(v, end=False)], QUICK, "download_truncated"),
    "a part not asked for": (lambda v, o: [rest_of(v, 0)], QUICK, "download_failed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(web: Web, case: str):
    answers, config, reason = REFUSED[case]
    assert told(web.fetch(*answers(web.video, web.other), config=config))[0] == reason
    assert web.files() == {}


def test_the_largest_file_and_one_in_chunks_come(web: Web):
    assert web.fetch(lie.chunked(web.video), config=QUICK.replace(bytes_max=len(web.video))) is None
    assert web.has(web.video)


@pytest.mark.parametrize(
    "name", ["v.mp4", "v.mov", "v.mkv", "v.webm:libvpx-vp9", "v.avi:mpeg4", "v.flv", "v.ts", "v.m2ts", "v.asf:mpeg4"]
)
def test_every_container_is_known(write_video: Write, name: str):
    file, _, codec = name.partition(":")
    check_video(file, write_video(file, noise_frames(4), codec=codec or "libx264").read_bytes()[:512], "")


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "empty"),
        (b"\n <HTML lang=en>", "an HTML page"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"RIFF\0\0\0\0WEBP", "a picture"),
        (b"\0\0\0\x1cftypavif", "bytes 00 00 00 1c"),
        (b'{"error": 1}', "text ('{\"error\": 1}')"),
        (b"RIFF\0\0\0\0WAVEfmt ", "bytes 52 49"),
        (b"G" + bytes(511), "bytes 47 00"),
    ],
)
def test_the_message_says_what_it_is(head: bytes, what: str):
    with pytest.raises(Failure) as failure:
        check_video("It", head, "video/mp4")
    assert failure.value.message.startswith(f"It is no video: it is {what}")
    assert failure.value.message.endswith(", and the server calls it video/mp4.")
    assert (failure.value.reason, failure.value.again) == ("download_not_video", False)


# --- Addresses ---


@pytest.mark.parametrize(
    "url",
    [
        "",
        "v.mp4",
        "file:///etc/passwd",
        "ftp://host/v",
        "http://",
        "http://host:99999/",
        "http://[::1",
        "//h/v",
        "a\0b",
    ],
)
def test_only_web_addresses_are_fetched(web: Web, url: str):
    reason, message = told(web.get(url))
    assert reason == "download_bad_url"
    assert repr(url) in message
    assert web.files() == {}


@given(st.sampled_from(["", "http://", "https://h", "http://h/", "http:", "//", "data:"]), st.text(max_size=40))
def test_any_text_is_an_address_or_refused(start: str, text: str):
    for base in (None, web_url("https://host/folder/v.mp4")):
        try:
            url = web_url(start + text, base)
        except Failure:
            continue
        assert shown(url).startswith(("http://", "https://"))


def test_a_name_that_no_host_can_have(web: Web):
    assert told(web.get(f"http://{'a' * 70}.example/v.mp4"))[0] == "download_bad_url"


def test_messages_keep_secrets(web: Web):
    undone = web.get(f"http://me:hush@127.0.0.1:{web.server.port}/v.mp4?token=hush#hush")
    assert told(undone) == ("download_http_status", f"{web.url} answers 404 Not Found.")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1", "4000::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "::ffff:100.64.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_off_the_internet(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"],
)
def test_addresses_on_the_internet(address: str):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::1]"]
)
def test_this_machine_is_not_asked(web: Web, host: str):
    web.server.answers["/v.mp4"] = [honest(web.video)]
    reason, message = told(web.get(f"http://{host}:{web.server.port}/v.mp4", QUICK.replace(allow_private=False)))
    assert reason == "download_private_address"
    assert message.endswith("which is not on the public internet; it was not asked.")
    assert web.server.asked == []
    assert web.files() == {}


def test_the_connection_goes_to_the_address_that_was_checked(web: Web):
    """No system can resolve this name, so the server was reached by the checked address, and the name was kept."""
    web.server.answers["/v.mp4"] = [honest(web.video)]
    names = Names({"127.0.0.1"}, videos_invalid=[["127.0.0.1"]])
    assert web.get(f"http://videos.invalid:{web.server.port}/v.mp4", QUICK, names.network()) is None
    assert names.looked_up == ["videos.invalid"]
    assert web.server.asked[0].headers["Host"] == f"videos.invalid:{web.server.port}"


def test_one_private_address_among_others_is_enough(web: Web):
    names = Names({"127.0.0.1"}, videos_invalid=[["127.0.0.1", "127.0.0.2"]])
    undone = web.get(f"http://videos.invalid:{web.server.port}/v.mp4", QUICK, names.network())
    message = "videos.invalid has the address 127.0.0.2, which is not on the public internet; it was not asked."
    assert told(undone) == ("download_private_address", message)
    assert web.server.asked == []


def test_the_next_address_is_tried_where_nobody_listens(web: Web):
    web.server.answers["/v.mp4"] = [honest(web.video)]
    names = Names({"127.0.0.1", "127.0.0.3"}, videos_invalid=[["127.0.0.3", "127.0.0.1"]])
    assert web.get(f"http://videos.invalid:{web.server.port}/v.mp4", QUICK, names.network()) is None


def test_a_name_that_changes_its_address_is_checked_again(web: Web):
    """DNS rebinding: the second connection would lead inside."""
    with LyingServer("127.0.0.2") as inside:
        web.server.answers["/v.mp4"] = [breaking(web.video, CUT)]
        names = Names({"127.0.0.1"}, videos_invalid=[["127.0.0.1"], ["127.0.0.2"]])
        undone = web.get(f"http://videos.invalid:{web.server.port}/v.mp4", QUICK, names.network())
        assert told(undone)[0] == "download_private_address"
        assert (len(web.server.asked), inside.asked) == (1, [])
        assert names.looked_up == ["videos.invalid"] * 2


@pytest.mark.parametrize("host", ["inside.invalid", "127.0.0.2"])
def test_a_redirect_does_not_lead_inside(web: Web, host: str):
    with LyingServer("127.0.0.2") as inside:
        inside.answers["/v.mp4"] = [honest(web.video)]
        web.server.answers["/v.mp4"] = [lie.redirect(f"http://{host}:{inside.port}/v.mp4")]
        names = Names({"127.0.0.1"}, videos_invalid=[["127.0.0.1"]], inside_invalid=[["127.0.0.2"]])
        undone = web.get(f"http://videos.invalid:{web.server.port}/v.mp4", QUICK, names.network())
        assert told(undone)[0] == "download_private_address"
        assert told(undone)[1].startswith(f"{host} has the address 127.0.0.2")
        assert (len(web.server.asked), inside.asked) == (1, [])
        assert web.files() == {}


# --- Redirects ---


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(web: Web, code: int):
    web.server.answers |= {"/b/v": [lie.redirect("../c", code)], "/c": [breaking(web.video, CUT), honest(web.video)]}
    assert web.fetch(lie.redirect(f"{web.server.url}/b/v", code)) is None
    assert web.has(web.video)
    assert web.server.ranges("/c") == [None, REST]


def test_redirects_are_counted(web: Web):
    web.server.answers = {f"/{number}": [lie.redirect(f"/{number + 1}")] for number in range(3)}
    web.server.answers["/3"] = [honest(web.video)]
    reason, message = told(web.fetch(lie.redirect("/0"), config=QUICK.replace(redirects_max=3)))
    assert reason == "download_redirects"
    assert message.endswith("/3 is one more than 3.")
    assert len(web.server.asked) == 4
    assert web.fetch(lie.redirect("/0"), config=QUICK.replace(redirects_max=4)) is None


def test_a_circle_is_seen(web: Web):
    web.server.answers["/b"] = [lie.redirect("/v.mp4")]
    message = f"{web.url}: the redirect from {web.server.url}/b to {web.url} leads in a circle."
    assert told(web.fetch(lie.redirect("/b"))) == ("download_redirects", message)
    assert len(web.server.asked) == 2


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/v", "data:video/mp4,x", "http://[::1"])
def test_a_redirect_leads_to_the_web_only(web: Web, to: str):
    reason, message = told(web.fetch(lie.redirect(to)))
    assert reason == "download_bad_url"
    assert repr(to) in message
    assert len(web.server.asked) == 1


def test_a_redirect_to_nowhere_is_a_status(web: Web):
    assert told(web.fetch(status(302))) == ("download_http_status", f"{web.url} answers 302 Found.")


# --- https ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lie.certificate_of("videos.invalid", tmp_path_factory.mktemp("tls") / "videos.pem")


@pytest.fixture
def secure(certificate: Path) -> Iterator[LyingServer]:
    """An https server with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with LyingServer(tls=context) as server:
        yield server


NAMES = Names({"127.0.0.1"}, videos_invalid=[["127.0.0.1"]], other_invalid=[["127.0.0.1"]])


def test_https_by_a_checked_address_still_proves_the_name(web: Web, secure: LyingServer, certificate: Path):
    secure.answers["/v.mp4"] = [honest(web.video)]
    network = NAMES.network(certificate)
    for host in ("other.invalid", "127.0.0.1"):
        undone = web.get(f"https://{host}:{secure.port}/v.mp4", ONCE, network)
        assert "CERTIFICATE_VERIFY_FAILED" in told(undone)[1]
    assert secure.asked == []
    assert web.get(f"https://videos.invalid:{secure.port}/v.mp4", ONCE, network) is None
    assert web.has(web.video)


def test_an_unknown_certificate_is_refused(web: Web, secure: LyingServer):
    undone = web.get(f"https://videos.invalid:{secure.port}/v.mp4", ONCE, NAMES.network())
    assert "CERTIFICATE_VERIFY_FAILED" in told(undone)[1]


def test_a_redirect_does_not_leave_https(web: Web, secure: LyingServer, certificate: Path):
    web.server.answers["/v.mp4"] = [honest(web.video)]
    secure.answers["/v.mp4"] = [lie.redirect(web.url)]
    undone = web.get(f"https://videos.invalid:{secure.port}/v.mp4", QUICK, NAMES.network(certificate))
    assert told(undone)[0] == "download_redirects"
    assert "leaves https" in told(undone)[1]
    assert web.server.asked == []
