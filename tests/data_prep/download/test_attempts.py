"""Another attempt, or none."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from data_prep.download.addresses import Network, retry_after
from data_prep.download.download import Request, download
from infra.errors import WorkError
from tests.data_prep.download import lying_server as lie
from tests.data_prep.download.conftest import CUT, ONCE, QUICK, Web, told
from tests.data_prep.download.lying_server import Answer, LyingServer, breaking, honest, status


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that were waited between attempts, each of them over at once."""
    seen: list[float] = []

    async def sleep(seconds: float) -> None:
        seen.append(seconds)

    monkeypatch.setattr("data_prep.download.download.asyncio.sleep", sleep)
    return seen


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


def test_the_server_says_how_long_to_wait(web: Web, waits: list[float]):
    config = QUICK.replace(retry_seconds_max=5)
    assert web.fetch(status(429, Retry_After="1"), honest(web.video), config=config) is None
    assert waits == [1.0]


@pytest.mark.parametrize("said", ["86400", lie.days_ago(-1), "9" * 400], ids=["day", "date", "forever"])
def test_the_server_cannot_make_it_wait_for_long(web: Web, waits: list[float], said: str):
    assert web.fetch(status(429, Retry_After=said), honest(web.video)) is None
    assert waits == [QUICK.retry_seconds_max]


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("120") == 120
    assert retry_after(lie.days_ago(-1)) == pytest.approx(86_400, abs=2)
    assert [retry_after(value) for value in ("", "soon", "-3", "²")] == [0, 0, 0, 0]


def test_waits_double_up_to_a_limit(web: Web, waits: list[float]):
    told(web.fetch(status(500), config=QUICK.replace(retry_seconds=0.1, retry_seconds_max=0.3)))
    for wait, shortest, longest in zip(waits, (0.05, 0.1, 0.2, 0.3), (0.1, 0.2, 0.3, 0.3), strict=True):
        assert shortest <= wait <= longest


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
    assert time.monotonic() - started < 20.0  # 80 s and for ever are what they have in mind


def test_a_slow_file_is_not_a_stall(web: Web):
    """Longer than the time limits in all, but there is always progress."""
    started = time.monotonic()
    config = ONCE.replace(connect_seconds=0.3)
    assert web.fetch(lie.steady(web.video, len(web.video) // 5, 0.4), config=config) is None
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
    wanted = [Request(f"{web.server.url}/{name}", web.folder / f"{name}.mp4") for name in "ab"]
    with pytest.raises(WorkError, match=r"a\.mp4 cannot be written: No space left on device"):
        download(wanted, QUICK.replace(read_seconds=60))


def test_a_place_that_cannot_be_written_costs_that_file_only(web: Web):
    web.server.answers["/v.mp4"] = [honest(web.video)]
    (web.folder / "file").write_text("no folder")
    (web.folder / "folder.mp4").mkdir()
    bad = [web.folder / "file" / "v.mp4", web.folder / ("n" * 250 + ".mp4"), web.folder / "folder.mp4"]
    result = download([Request(web.url, path) for path in [*bad, web.target]], QUICK)
    assert result[web.target] is None
    for path in bad:
        assert told(result[path])[0] == "download_failed"
        assert told(result[path])[1].startswith(f"{path} cannot be written: ")
