"""Downloads that broke off are continued, or begun anew."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data_prep.download import lying_server as lie
from tests.data_prep.download.conftest import CUT, ONCE, QUICK, REST, Answers, Web, range_of, rest_of, told
from tests.data_prep.download.lying_server import breaking, honest, status

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
    "new date": (
        lambda v, o: [breaking(v, CUT, None, lie.days_ago(0)), honest(v, None, lie.days_ago(0))],
        [None, None],
    ),
}
OLD = lie.days_ago(2)


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


# A shell gives what it starts in the background no SIGINT, and its children inherit that.
SCRIPT = """
import signal
import sys
from pathlib import Path
from data_prep.download.download import DownloadConfig, Request, download
signal.signal(signal.SIGINT, signal.default_int_handler)
download([Request(sys.argv[1], Path(sys.argv[2]))], DownloadConfig(allow_private=True, read_seconds=60))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_continued_by_the_next(web: Web, how: signal.Signals):
    web.server.answers["/v.mp4"] = [lie.stalling(web.video, 2 * CUT), honest(web.video)]
    part = web.folder / ".v.mp4.part"
    command = [sys.executable, "-c", SCRIPT, web.url, str(web.target)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
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
