"""A web server on loopback that does what servers do: stalls, breaks off, redirects, and says what is not so.

`server.answers[path]` is what the requests for a path get, one after the other, the last again and again; a path
without answers is not found. What was asked is in `server.asked`.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from data_prep.download.addresses import Network

Answer = Callable[["Asked"], None]
HTML = b"<!DOCTYPE html><html><body>This video has moved.</body></html>"


class Asked(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: LyingServer

    def do_GET(self) -> None:
        with self.server.counting:
            turn = sum(earlier.path == self.path for earlier in self.server.asked)
            self.server.asked.append(copy(self))  # a connection's next request overwrites this one
            self.server.now += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.now)
        try:
            answers = self.server.answers.get(self.path, [status(404)])
            answers[min(turn, len(answers) - 1)](self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.server.counting:
                self.server.now -= 1

    def head(self, code: int, **headers: Any) -> None:
        self.send_response(code)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def wait(self, seconds: float) -> None:
        self.server.closing.wait(seconds)

    def break_off(self, reset: bool = False) -> None:
        """Ends the connection now: with a FIN, or as a machine that lost it does."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_WR)
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to stderr."""


class LyingServer(ThreadingHTTPServer):
    """Listens on a free port of `host` while it is a context; with `tls` it speaks https."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        super().__init__((host, 0), Asked)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[Asked] = []
        self.now = self.most_at_once = 0
        self.counting, self.closing = threading.Lock(), threading.Event()
        self.port = int(self.server_address[1])
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event here."""

    def ranges(self, path: str = "/v.mp4") -> list[str | None]:
        """The Range header of each request for a path."""
        return [asked.headers["Range"] for asked in self.asked if asked.path == path]


def honest(
    data: bytes,
    etag: str | None = '"one"',
    modified: str | None = None,
    kind: str | None = "video/mp4",
    ranges: bool = True,
    encoding: str | None = None,
) -> Answer:
    """The file, or the part of it that is asked for: RFC 9110."""

    def answer(asked: Asked) -> None:
        span = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("Range", ""))
        same = asked.headers.get("If-Range") in (None, etag, modified)
        said = {"ETag": etag, "Last_Modified": modified, "Content_Type": kind, "Content_Encoding": encoding}
        if span and same and ranges:
            first = int(span[1])
            if first >= len(data):
                asked.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
                return
            place = f"bytes {first}-{len(data) - 1}/{len(data)}"
            asked.head(206, Content_Range=place, Content_Length=len(data) - first, **said)
            asked.wfile.write(data[first:])
        else:
            asked.head(200, Content_Length=len(data), **said)
            asked.wfile.write(data)

    return answer


def breaking(
    data: bytes, after: int, etag: str | None = '"one"', modified: str | None = None, reset: bool = False
) -> Answer:
    """The connection ends after so many bytes of the body; asked for a rest, it gives the whole."""

    def answer(asked: Asked) -> None:
        asked.head(200, Content_Length=len(data), ETag=etag, Last_Modified=modified, Content_Type="video/mp4")
        asked.wfile.write(data[:after])
        time.sleep(0.05)  # a reset overtakes bytes that were not read yet
        asked.break_off(reset)

    return answer


def stalling(data: bytes, after: int, etag: str = '"one"', seconds: float = 60.0) -> Answer:
    """Nothing comes after so many bytes of the body."""

    def answer(asked: Asked) -> None:
        asked.head(200, Content_Length=len(data), ETag=etag, Content_Type="video/mp4")
        asked.wfile.write(data[:after])
        asked.wait(seconds)
        asked.close_connection = True

    return answer


def silent(seconds: float = 60.0) -> Answer:
    """No answer at all."""

    def answer(asked: Asked) -> None:
        asked.wait(seconds)
        asked.close_connection = True

    return answer


def slow(data: bytes, seconds: float) -> Answer:
    """The whole file, a while later."""

    def answer(asked: Asked) -> None:
        asked.wait(seconds)
        honest(data)(asked)

    return answer


def status(code: int, **headers: str) -> Answer:
    """A status, and a page where there may be one."""
    page = b"" if code in (204, 304) else HTML

    def answer(asked: Asked) -> None:
        asked.head(code, Content_Length=len(page) or None, **headers)
        asked.wfile.write(page)

    return answer


def redirect(to: str, code: int = 302) -> Answer:
    return status(code, Location=to)


def partial(data: bytes, content_range: str, etag: str = '"one"', code: int = 206) -> Answer:
    """These bytes, said to be that range, whatever was asked."""

    def answer(asked: Asked) -> None:
        asked.head(code, Content_Range=content_range, Content_Length=len(data), ETag=etag)
        asked.wfile.write(data)

    return answer


def continuing(data: bytes, end: int) -> Answer:
    """The part that is asked for, broken off at byte `end` of the file."""

    def answer(asked: Asked) -> None:
        first = int(asked.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        place = f"bytes {first}-{len(data) - 1}/{len(data)}"
        asked.head(206, Content_Range=place, Content_Length=len(data) - first, ETag='"one"')
        asked.wfile.write(data[first:end])
        asked.break_off()

    return answer


def steady(data: bytes, piece: int, seconds: float) -> Answer:
    """The whole file in pieces, and time between them."""

    def answer(asked: Asked) -> None:
        asked.head(200, Content_Length=len(data), Content_Type="video/mp4")
        for start in range(0, len(data), piece):
            asked.wfile.write(data[start : start + piece])
            if asked.server.closing.wait(seconds):
                return

    return answer


def chunked(data: bytes, end: bool = True, etag: str | None = None) -> Answer:
    """A body that states no length, with its end or broken off before it."""

    def answer(asked: Asked) -> None:
        asked.head(200, Transfer_Encoding="chunked", ETag=etag)
        for start in range(0, len(data), 1000):
            piece = data[start : start + 1000]
            asked.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if end:
            asked.wfile.write(b"0\r\n\r\n")
        else:
            asked.break_off()

    return answer


def until_closed(data: bytes) -> Answer:
    """A body that ends where the connection does."""

    def answer(asked: Asked) -> None:
        asked.head(200, Connection="close")
        asked.wfile.write(data)
        asked.close_connection = True

    return answer


def days_ago(days: float) -> str:
    """An HTTP date."""
    return formatdate(time.time() - 86_400 * days, usegmt=True)


class Names:
    """Names and their addresses: each look-up gives the next list, the last again and again. `allowed` are the
    addresses that pass for public; a literal address stands for itself."""

    def __init__(self, allowed: set[str], **names: list[list[str]]) -> None:
        self.names = {name.replace("_", "."): lists for name, lists in names.items()}
        self.allowed, self.looked_up = allowed, list[str]()

    async def resolve(self, host: str, port: int) -> list[str]:
        self.looked_up.append(host)
        lists = self.names.get(host, [[host]])
        return lists.pop(0) if len(lists) > 1 else lists[0]

    def network(self, certificate: Path | None = None) -> Network:
        tls = ssl.create_default_context(cafile=str(certificate)) if certificate else None
        return Network(lambda address: str(address) in self.allowed, self.resolve, tls)


def certificate_of(host: str, path: Path) -> Path:
    """Writes a certificate that a host signed by itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    return path
