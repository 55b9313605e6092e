"""Addresses that are asked, redirects, https."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.download.addresses import is_public, shown, web_url
from data_prep.download.config import Failure
from tests.data_prep.download import lying_server as lie
from tests.data_prep.download.conftest import CUT, ONCE, QUICK, REST, Web, told
from tests.data_prep.download.lying_server import LyingServer, Names, breaking, honest, status


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
