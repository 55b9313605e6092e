"""Downloads that go well, and what is no video."""

from __future__ import annotations

import asyncio
import logging

import pytest

from data_prep.download.addresses import check_video
from data_prep.download.config import DownloadConfig, Failure
from data_prep.download.download import FailedDownload, Request, download
from tests.data_prep.conftest import Write, noise_frames
from tests.data_prep.download import lying_server as lie
from tests.data_prep.download.conftest import CUT, QUICK, Answers, Web, rest_of, told
from tests.data_prep.download.lying_server import HTML, honest


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
    assert download([Request(f"{web.server.url}/{name}", web.target) for name in "aab"], QUICK) == {web.target: None}
    assert [asked.path for asked in web.server.asked] == ["/a"]
    assert web.has(web.video)


def test_files_at_a_time_are_bounded(web: Web):
    web.server.answers = {f"/{number}": [lie.slow(web.video, 0.1)] for number in range(12)}
    wanted = [Request(web.server.url + path, web.folder / "page" / f"{path[1:]}.mp4") for path in web.server.answers]
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
        result = download([Request(f"{web.server.url}/{name}", web.folder / f"{name}.mp4") for name in names], QUICK)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "animateflow.data_prep"]
    assert line.startswith(f"Videos from the web: 1 fetched, {(len(web.video) + len(HTML)) / 1e6:.1f} MB in ")
    assert line.endswith("; 1 were there; 2 not fetched, 1 download_http_status, 1 download_not_video")
    reasons = [undone.reason if undone else None for undone in result.values()]
    assert reasons == [None, "download_not_video", "download_http_status", None]
    assert "Downloading: 100%" in capsys.readouterr().err


def test_inside_a_running_loop_as_in_a_notebook(web: Web):
    async def cell() -> FailedDownload | None:
        return web.fetch(honest(web.video))

    assert asyncio.run(cell()) is None


def test_the_environments_proxy_is_not_used(web: Web, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert web.fetch(honest(web.video)) is None


def test_how_to_download_does_not_change_what_is_made():
    assert QUICK.fingerprint() == DownloadConfig().fingerprint()


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
