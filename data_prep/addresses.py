"""The way to other machines: which may be talked to, where redirects lead, and what goes wrong.

A table of web addresses is somebody else's data: an address in it, or one that it redirects to, may lead to a service inside
one's own network. So a name is resolved here, all its addresses are checked, and the connection is made to one that was
checked: there is no second look-up in between that could answer otherwise.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpcore
import httpx

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

PROTOCOL_ASSIGNMENTS = IPv4Network("192.0.0.0/24")  # Python calls half of it global
GLOBAL_UNICAST = IPv6Network("2000::/3")  # RFC 4291, section 2.4: what is not in it is of no use on the internet
DOCUMENTATION = IPv6Network("3fff::/20")  # RFC 9637
NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
REDIRECTS = (301, 302, 303, 307, 308)


class Failure(Exception):
    """A file could not be fetched: a code and a sentence. `again`: another attempt may do better, after `wait` seconds
    where the server asks for them."""

    def __init__(self, reason: str, message: str, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(message)
        self.reason, self.message, self.again, self.wait = reason, message, again, wait


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet: not loopback, private, link-local, shared by a provider (100.64/10),
    multicast, reserved, unspecified, or an IPv6 form of such an IPv4 address."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in PROTOCOL_ASSIGNMENTS
    inner = address.ipv4_mapped or address.sixtofour
    if address in NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(inner)
    return address in GLOBAL_UNICAST and address.is_global and address not in DOCUMENTATION


def is_any(address: Address) -> bool:
    """Every address may be talked to."""
    return True


async def resolve_by_system(host: str, port: int) -> list[str]:
    """The addresses of a host in the system's order of preference.

    Raises:
        socket.gaierror: there is no such host, or no name server answers.
        UnicodeError: this cannot be a host's name.
    """
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
            Failure: one of them may not be talked to. The others are not tried either: an honest host has no such.
            socket.gaierror, UnicodeError: as `resolve`.
        """
        found = await self.resolve(host, port)
        for text in found:
            if not self.allowed(ip_address(text)):
                raise Failure(
                    "download_private_address",
                    f"The host {host} has the address {text}, which is not on the public internet; it was not asked.",
                )
        return found


class _Connections(httpcore.AsyncNetworkBackend):
    """TCP connections to checked addresses only. Above it, the name stays: in the Host header, for TLS, and as the key
    of connections that are used again."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.sockets = httpcore.AnyIOBackend()

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


class _Transport(httpx.AsyncHTTPTransport):
    def __init__(self, network: Network, concurrency: int) -> None:
        # httpx has no argument for the network below it, and takes all that it does from this pool.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=network.tls or httpx.create_ssl_context(trust_env=False),
            max_connections=concurrency,
            keepalive_expiry=5.0,
            network_backend=_Connections(network),
        )


def client(network: Network, concurrency: int, connect_seconds: float, read_seconds: float) -> httpx.AsyncClient:
    """A client that talks to allowed machines only, follows no redirect, and knows no proxy, netrc file or cookie."""
    return httpx.AsyncClient(
        transport=_Transport(network, concurrency),
        timeout=httpx.Timeout(read_seconds, connect=connect_seconds, pool=None),
        headers={"User-Agent": "animateflow", "Accept": "video/*, */*;q=0.5", "Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        trust_env=False,
    )


def web_url(text: str) -> httpx.URL:
    """The http or https address that a text is.

    Raises:
        Failure: it is none.
    """
    try:
        url = httpx.URL(text)
        if url.scheme in ("http", "https") and url.host:
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
    client: httpx.AsyncClient, url: httpx.URL, headers: dict[str, str], redirects_max: int
) -> AsyncIterator[httpx.Response]:
    """The answer to GET at the end of all redirects, its body not yet read. Every hop goes through the same checks.

    Raises:
        Failure: an address or a redirect that is not followed.
        httpx.HTTPError, socket.gaierror, UnicodeError: no answer.
    """
    hops = [url]
    while True:
        response = await client.send(client.build_request("GET", hops[-1], headers=headers), stream=True)
        try:
            if response.status_code not in REDIRECTS:
                yield response
                return
            target, problem = _target(response), ""
        finally:
            await response.aclose()
        if target in hops:
            problem = "leads in a circle"
        elif len(hops) > redirects_max:
            problem = f"is the last of more than {redirects_max}"
        elif hops[-1].scheme == "https" and target.scheme == "http":
            problem = "leaves https, so that anybody on the way could change the file"
        if problem:
            message = f"{shown(url)}: the redirect from {shown(hops[-1])} to {shown(target)} {problem}."
            raise Failure("download_redirects", message)
        hops.append(target)


def _target(response: httpx.Response) -> httpx.URL:
    location = response.headers.get("Location", "")
    if not location:
        message = f"{shown(response.url)} answers {response.status_code}, a redirect, and does not say to where."
        raise Failure("download_redirects", message)
    try:
        joined = str(response.url.join(location))
    except (httpx.InvalidURL, UnicodeError):
        joined = location
    return web_url(joined)


@contextmanager
def failures(url: httpx.URL) -> Iterator[None]:
    """What goes wrong on the way, as a `Failure` that names the address."""
    name = shown(url)
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
