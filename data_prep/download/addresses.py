"""The way to a file on the web: which machines may be talked to, where redirects lead, what answers say.

A table of web addresses is somebody else's data: an address in it, or one that it redirects to, may lead to a service
inside one's own network. So a name is resolved here, all its addresses are checked, and the connection is made to one
that was checked: there is no second look-up in between that could answer otherwise.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Self

import httpcore
import httpx

from data_prep.download.config import DownloadConfig, Failure

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

PROTOCOL_ASSIGNMENTS = IPv4Network("192.0.0.0/24")  # Python calls half of it global
GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, section 2.4: nothing outside is on the internet
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
HEADERS = {"User-Agent": "animateflow", "Accept": "video/*, */*;q=0.5", "Accept-Encoding": "identity"}
REDIRECTS = (301, 302, 303, 307, 308)
AGAIN = (408, 425, 429)  # and 5xx
VIDEO_HEADS = (b"\x1aE\xdf\xa3", b"FLV", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3", bytes.fromhex("3026b2758e66cf11"))


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet: not loopback, private, link-local, a provider's own (100.64/10),
    multicast, reserved, unspecified, or an IPv6 form of such an IPv4 address."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in PROTOCOL_ASSIGNMENTS
    inner = IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return is_public(inner)
    return address in GLOBAL_UNICAST and address.is_global


async def resolve_by_system(host: str, port: int) -> list[str]:
    """The addresses of a host in the system's order; socket.gaierror, or UnicodeError for what can be no host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class Network:
    """How a download reaches other machines."""

    allowed: Callable[[Address], bool] = is_public
    resolve: Resolve = resolve_by_system
    tls: ssl.SSLContext | None = None
    """Which certificates are trusted; None: those of the usual authorities."""

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """All addresses of a host.

        Raises:
            Failure: one may not be talked to. The others are not tried either: an honest host has no such address.
            socket.gaierror, UnicodeError: as `resolve_by_system`.
        """
        found = await self.resolve(host, port)
        for text in found:
            if not self.allowed(ip_address(text)):
                message = f"{host} has the address {text}, which is not on the public internet; it was not asked."
                raise Failure("download_private_address", message)
        return found


class _Connections(httpcore.AsyncNetworkBackend):
    """TCP connections to checked addresses only. Above them the name stays: in the Host header, for TLS, and as the key
    by which a connection is used again."""

    def __init__(self, network: Network) -> None:
        self.network, self.sockets = network, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        refused: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self.network.addresses(host, port):
            try:
                return await self.sockets.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                refused = error
        raise refused


def transport(network: Network, concurrency: int) -> httpx.AsyncHTTPTransport:
    """HTTP to allowed machines only. It is used without httpx's client, which reads proxies and passwords from the
    environment, keeps cookies, and stumbles over some redirects even where it shall not follow them."""
    tls = network.tls or httpx.create_ssl_context(trust_env=False)
    made = httpx.AsyncHTTPTransport(verify=tls)
    # httpx has no argument for the network below it; all that its transport does goes through this pool.
    made._pool = httpcore.AsyncConnectionPool(
        ssl_context=tls,
        max_connections=concurrency,
        keepalive_expiry=5.0,
        network_backend=_Connections(network),
    )
    return made


def web_url(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """The http or https address that a text is, or that it is seen from another one.

    Raises:
        Failure: it is none.
    """
    try:
        url = (base.join(text) if base else httpx.URL(text)).copy_with(fragment=None)
        if url.scheme in ("http", "https") and url.host and 0 < (url.port or 80) < 2**16:
            return url
        problem = "only http://… and https://… are fetched"
    except (httpx.InvalidURL, UnicodeError) as error:
        problem = str(error)
    raise Failure("download_bad_url", f"{text[:200]!r} is no web address of a video: {problem}.")


def shown(url: httpx.URL) -> str:
    """An address as messages show it: without user, password and query, which may be secrets."""
    return str(url.copy_with(userinfo=b"", query=None, fragment=None))[:200]


@asynccontextmanager
async def answer(
    web: httpx.AsyncHTTPTransport, url: httpx.URL, headers: dict[str, str], config: DownloadConfig
) -> AsyncIterator[httpx.Response]:
    """The answer to GET at the end of all redirects, its body not yet read. Every hop goes through the same checks.

    Raises:
        Failure: an address or a redirect that is not followed.
        httpx.HTTPError, socket.gaierror, UnicodeError: no answer.
    """
    hops = [url]
    seconds = {"connect": config.connect_seconds, "read": config.read_seconds, "write": config.read_seconds}
    while True:
        request = httpx.Request("GET", hops[-1], headers=HEADERS | headers, extensions={"timeout": seconds})
        response = await web.handle_async_request(request)
        try:
            if response.status_code not in REDIRECTS or "Location" not in response.headers:
                yield response
                return
            target, problem = web_url(response.headers["Location"], base=hops[-1]), ""
        finally:
            await response.aclose()
        if target in hops:
            problem = "leads in a circle"
        elif len(hops) > config.redirects_max:
            problem = f"is one more than {config.redirects_max}"
        elif hops[-1].scheme == "https" and target.scheme == "http":
            problem = "leaves https, so that anybody on the way could change the file"
        if problem:
            message = f"{shown(url)}: the redirect from {shown(hops[-1])} to {shown(target)} {problem}."
            raise Failure("download_redirects", message)
        hops.append(target)


@contextmanager
def failures(name: str) -> Iterator[None]:
    """What goes wrong on the way to a file, as a `Failure` that names it."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        what = "no connection was made" if isinstance(error, httpx.ConnectTimeout) else "too little came"
        raise Failure("download_timeout", f"{name} took too long: {what} in time.", again=True) from None
    except UnicodeError as error:
        raise Failure("download_bad_url", f"{name} names no possible host: {error}.") from None
    except socket.gaierror as error:
        lasting = error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        raise Failure("download_failed", f"The host of {name} was not found: {error.strerror}.", not lasting) from None
    except httpx.HTTPError as error:
        what = str(error) or type(error).__name__
        raise Failure("download_failed", f"{name} could not be fetched: {what}.", again=True) from None


@dataclass(frozen=True)
class FileStated:
    """A file as the server describes it."""

    url: str
    etag: str = ""
    modified: str = ""
    size: int | None = None
    """Bytes; None where the server does not say."""

    @classmethod
    def of(cls, url: str, headers: httpx.Headers) -> Self:
        """From an answer with the whole file. A weak ETag is left out, and Last-Modified less than a minute before the
        answer: another version of the file may have the same (RFC 9110, section 8.8)."""
        etag, modified, size = headers.get("ETag", ""), headers.get("Last-Modified", ""), headers.get("Content-Length")
        strong = etag.startswith('"') and etag.isascii()
        try:
            age = parsedate_to_datetime(headers["Date"]) - parsedate_to_datetime(modified)
            settled = age.total_seconds() >= 60 and modified.isascii()
        except (KeyError, ValueError, TypeError):
            settled = False
        return cls(url, etag if strong else "", modified if settled else "", int(size) if size else None)

    @classmethod
    def read(cls, note: Path, url: str) -> Self:
        """From a note of an earlier answer; nothing but the address where there is none, or one of another address."""
        with suppress(OSError, ValueError, TypeError):  # not there, or half written
            stated = cls(**json.loads(note.read_text()))
            if stated.url == url:
                return stated
        return cls(url)

    def continued(self, start: int, response: httpx.Response) -> Self | None:
        """This file with its size, where the answer goes on with it at byte `start`; else None."""
        name, known = ("ETag", self.etag) if self.etag else ("Last-Modified", self.modified)
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or span is None or response.headers.get(name, known) != known:
            return None
        fits = 0 < start == int(span[1]) and self.size in (None, int(span[2]))
        return replace(self, size=int(span[2])) if fits else None


def check_answer(name: str, response: httpx.Response) -> None:
    """Whether an answer brings a file's bytes as they are.

    Raises:
        Failure: it does not.
    """
    status, headers = response.status_code, response.headers
    if status not in (200, 206):
        message = f"{name} answers {status} {httpx.codes.get_reason_phrase(status)}".rstrip() + "."
        wait = retry_after(headers.get("Retry-After", ""))
        raise Failure("download_http_status", message, status in AGAIN or status >= 500, wait)
    if (packed := headers.get("Content-Encoding", "identity")) != "identity":
        raise Failure("download_not_video", f"{name} comes packed ({packed}), although asked for as it is.")
    if "Content-Length" not in headers and "chunked" not in headers.get("Transfer-Encoding", ""):
        message = f"{name} comes without a length: a whole file cannot be told from a broken one."
        raise Failure("download_truncated", message)


def retry_after(value: str) -> float:
    """Seconds from a Retry-After header: a number, or a date (RFC 9110, section 10.2.3); 0 where it is neither."""
    try:
        return float(value) if value.isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0


def check_video(name: str, head: bytes, declared: str) -> None:
    """Whether a file begins as a video: MP4, QuickTime, Matroska, WebM, AVI, FLV, Ogg, ASF, MPEG streams. Its bytes
    decide: many a server calls a video application/octet-stream, and a page a video.

    Raises:
        Failure: it does not.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        video = head[4:12] not in (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")  # pictures
    else:
        transport = b"GGG" in (head[0 : 2 * 188 + 1 : 188], head[4 : 4 + 2 * 192 + 1 : 192])
        video = transport or head.startswith(VIDEO_HEADS) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    if video:
        return
    text = " ".join(head[:60].decode("ascii", "backslashreplace").split())
    if not head:
        what = "empty"
    elif b"<html" in head.lower() or b"<!doctype html" in head.lower():
        what = "an HTML page"
    elif head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8")) or head[8:12] == b"WEBP":
        what = "a picture"
    else:
        what = f"text ({text[:40]!r})" if text.isprintable() and head.isascii() else f"bytes {head[:12].hex(' ')}"
    message = f"{name} is no video: it is {what}, and the server calls it {declared[:80] or 'nothing'}."
    raise Failure("download_not_video", message)
