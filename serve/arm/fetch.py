"""Fetches what a request points to, without becoming the caller's way into our network.

A name is resolved once, every address it has must be public, and the connection goes to the address that was
checked, while Host and certificate are the name's: neither a redirect nor a name server that changes its mind
(DNS rebinding) leads anywhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from functools import cache
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import h11

from serve.arm.errors import ApiError

REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
AS_WRITTEN = "%/:?@!$&'()*+,;=~"  # of a path or query; what is not ASCII is sent as browsers do


async def fetch(
    url: str,
    *,
    max_bytes: int,
    seconds: float,
    allow_private: bool,
    count: Callable[[int], object] = lambda _: None,
) -> bytes:
    """The content behind an http(s) URL; ApiError when it may not or cannot be had, within all limits.

    `count` is told of every piece, and may raise an error of its own.
    """
    try:
        async with asyncio.timeout(seconds):
            for _ in range(REDIRECTS + 1):
                parts = _checked(url)
                address = await _resolve(parts, allow_private)
                found = await _get(parts, address, max_bytes, count)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found)
    except TimeoutError:
        raise _refused(f"did not answer within {seconds:g} seconds") from None
    except ssl.SSLCertVerificationError:
        raise _refused("leads to a server whose certificate cannot be trusted") from None
    except (OSError, h11.ProtocolError) as error:  # ssl's other errors are OSErrors
        raise _refused(f"cannot be fetched: {type(error).__name__}") from None
    raise _refused(f"redirects more than {REDIRECTS} times")


def _refused(reason: str) -> ApiError:
    # The URL itself may hold a secret: the caller knows it, logs need not.
    return ApiError(400, f"a media URL {reason}", param="messages", code="invalid_media_url")


def _checked(url: str) -> SplitResult:
    """The parts of a URL in ASCII."""
    try:
        parts = urlsplit(url)
        if parts.scheme in PORTS and parts.hostname and parts.port != 0 and "@" not in parts.netloc:
            name = parts.hostname.encode("idna").decode()
            host = f"[{name}]" if ":" in name else name
            netloc = f"{host}:{parts.port}" if parts.port else host
            path, query = (quote(part, safe=AS_WRITTEN) for part in (parts.path, parts.query))
            return parts._replace(netloc=netloc, path=path, query=query)
    except ValueError:  # a port that is none, a name that cannot be one
        pass
    raise _refused("is neither a data URI nor an http or https address without user and password")


async def _resolve(parts: SplitResult, allow_private: bool) -> tuple[str, int]:
    """Address and port to connect to."""
    port = parts.port or PORTS[parts.scheme]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise _refused("names a host that cannot be found") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_private and not all(map(public, addresses)):
        raise _refused("leads to an address that is not public (--allow-private-urls lets an arm go there)")
    return addresses[0], port


def public(address: str) -> bool:
    """Whether an address is one of the open internet, seen through IPv4 addresses wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return public(str(inner))
    return ip.is_global and not ip.is_multicast


async def _get(
    parts: SplitResult, address: tuple[str, int], max_bytes: int, count: Callable[[int], object]
) -> bytes | str:
    """The body behind one address, or where it redirects to."""
    context = _trust() if parts.scheme == "https" else None
    name = parts.hostname if context else None
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=name)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [("host", parts.netloc), ("accept", "image/*, video/*"), ("connection", "close")]
        connection = h11.Connection(h11.CLIENT)
        writer.write(connection.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        return await _receive(connection, reader, max_bytes, count)
    finally:
        writer.close()


@cache
def _trust() -> ssl.SSLContext:
    """The authorities of this machine, or of $SSL_CERT_FILE; reading them takes as long as some fetches."""
    return ssl.create_default_context()


async def _receive(
    connection: h11.Connection,
    reader: asyncio.StreamReader,
    max_bytes: int,
    count: Callable[[int], object],
) -> bytes | str:
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            location = dict(event.headers).get(b"location")
            if event.status_code in (301, 302, 303, 307, 308) and location:
                return location.decode(errors="replace")
            if event.status_code != 200:
                raise _refused(f"answers with status {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            count(len(event.data))
            if len(body) > max_bytes:
                raise _refused(f"holds more than {max_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise _refused("ends before its content does")
