"""URLs of a request lead to the open internet and nowhere else, whatever they say on the way."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from serve.arm import fetch as module
from serve.arm.errors import ApiError
from serve.arm.fetch import fetch, public
from tests.http_server import answering


class Site(BaseHTTPRequestHandler):
    """/picture, /large, /endless, /broken, /to/URL redirects there, /again to itself."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.server.hosts.append(self.headers["host"])  # type: ignore[attr-defined]
        picture: bytes = self.server.picture  # type: ignore[attr-defined]
        body = b"x" * 5000 if self.path == "/large" else picture
        if self.path.startswith("/to/") or self.path == "/again":
            self.send_response(302)
            self.send_header("location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/silent":
            self.connection.settimeout(5)
            self.connection.recv(1)
        elif self.path.partition("?")[0] in ("/picture", "/large", "/broken", "/b%C3%BCcher"):
            self.send_response(200)
            self.send_header("content-length", str(len(body) + (self.path == "/broken")))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(tls: ssl.SSLContext | None = None, picture: bytes = b"x" * 100) -> Iterator[HTTPServer]:
    """A site, whose `asked` and `hosts` are the paths and names it was asked for."""
    server = HTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.hosts, server.picture = [], [], picture  # type: ignore[attr-defined]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    with answering(server):
        yield server


@pytest.fixture(scope="module")
def site() -> Iterator[HTTPServer]:
    with serving() as server:
        yield server


def get(url: str, *, allow_private: bool = True, seconds: float = 5) -> bytes:
    return asyncio.run(fetch(url, max_bytes=1000, seconds=seconds, allow_private=allow_private))


def address(site: HTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{site.server_address[1]}{path}"


def test_content_comes_directly_and_by_redirect(site: HTTPServer) -> None:
    assert get(address(site, "/picture")) == b"x" * 100
    assert get(address(site, "/to/" + address(site, "/picture"))) == b"x" * 100
    assert get(address(site, "/to//picture")) == b"x" * 100


def test_names_and_paths_need_not_be_ascii(site: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, [["127.0.0.1"]])
    port = site.server_address[1]
    assert get(f"http://bücher.example:{port}/bücher?größe=1 m") == b"x" * 100
    assert site.asked[-1] == "/b%C3%BCcher?gr%C3%B6%C3%9Fe=1%20m"  # type: ignore[attr-defined]
    assert site.hosts[-1] == f"xn--bcher-kva.example:{port}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/large", "more than 1000 bytes"),
        ("/broken", "cannot be fetched|ends before"),
        ("/missing", "status 404"),
        ("/again", "redirects more than 3 times"),
        ("/to/file:///etc/passwd", "nor an http or https"),
        ("/silent", "within 0.3 seconds"),
    ],
)
def test_limits_hold(site: HTTPServer, path: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        get(address(site, path), seconds=0.3 if path == "/silent" else 5)
    assert caught.value.status == 400
    assert "127.0.0.1" not in str(caught.value)  # the URL may hold a secret


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f.1", "10.1.2.3", "169.254.169.254"),
        *("224.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]"),
        "[2002:7f00:1::]",
    ],
)
def test_private_addresses_are_not_asked(site: HTTPServer, host: str) -> None:
    before = len(site.asked)  # type: ignore[attr-defined]
    with pytest.raises(ApiError, match=r"not public|cannot be found"):
        get(f"http://{host}:{site.server_address[1]}/picture", allow_private=False)
    assert len(site.asked) == before  # type: ignore[attr-defined]


def test_public_addresses_are_public() -> None:
    assert all(map(public, ("93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808")))


def resolver(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> None:
    """Names resolve to each of `answers` in turn."""

    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)


def test_a_redirect_is_checked_like_the_first_address(
    site: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver(monkeypatch, [["127.0.0.1"], ["127.0.0.1"]])
    monkeypatch.setattr(module, "public", lambda address, seen=[]: not (seen.append(address) or seen[1:]))
    before = len(site.asked)  # type: ignore[attr-defined]
    with pytest.raises(ApiError, match="not public"):
        get(f"http://there.example:{site.server_address[1]}/to//picture", allow_private=False)
    assert site.asked[before:] == ["/to//picture"]  # type: ignore[attr-defined]


def test_the_address_checked_is_the_one_connected_to(
    site: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers differently the second time is not asked a second time."""
    connected: list[str] = []
    resolver(monkeypatch, [["93.184.216.34"], ["127.0.0.1"]])

    async def connect(host: str, port: int, **_: Any) -> Any:
        connected.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", connect)
    with pytest.raises(ApiError, match="cannot be fetched: ConnectionRefusedError"):
        get("http://rebinding.example/picture", allow_private=False)
    assert connected == ["93.184.216.34"]


def test_one_private_address_among_others_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, [["93.184.216.34", "10.0.0.1"]])
    with pytest.raises(ApiError, match="not public"):
        get("http://mixed.example/", allow_private=False)
