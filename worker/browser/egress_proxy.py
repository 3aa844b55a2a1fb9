"""An HTTP proxy for a program in a sandbox that may reach some hosts: the only way out that it has.

The sandbox has no network. What it has, where a tool allows it, is a socket whose other end is here, so every
connection is asked for by name, checked by the operator's policy, and made by the worker to an address that was
checked. A tunnel (`CONNECT`) carries TLS, and nothing else: its first message must name the host that was asked for.
Then it passes through as it is; the worker sees names and sizes, no content. Without TLS a connection carries one
request, with the body that its head announces: what follows could name another host of the same address.

It cannot see what is asked for inside TLS, nor a name that is encrypted (ECH). A host that is allowed and shares its
addresses with others (a content network) may let a hostile program reach those too; name hosts with that in mind.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx

from backplane.errors import PlatformError
from backplane.net.addresses import written_address
from backplane.net.egress import OutsidePolicy
from backplane.net.hosts import STANDARD_PORTS, normal_host, split_port
from backplane.process.tasks import end
from worker.browser.client_hello import (
    ALERT_DECODE_ERROR,
    ALERT_UNRECOGNIZED_NAME,
    ClientHello,
    NoClientHello,
    NotTls,
    alert,
    read_client_hello,
)
from worker.sandbox.base import EgressWriter

HEAD_MAX_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024
HEAD_SECONDS = 30.0
"""How long the head of a request may take, and again the first message of TLS after it."""
REFUSALS_REPORTED = 20
CHUNK_LINE_BYTES = 256
TRAILERS_MAX = 20
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(;[^\r\n]*)?\r\n")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOP_BY_HOP = frozenset({b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive", b"te", b"upgrade"})


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """`connections` at once, from when they are opened; `bytes` of all of them together, both ways; `idle_seconds`
    without a byte either way."""

    connections: int
    bytes: int
    connect_seconds: float
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class _ProxyRefusal(Exception):
    """`alert`: of TLS, in place of an answer in HTTP."""

    status: int
    message: str
    alert: int | None = None


class EgressProxy:
    """The proxy of one command. `refused` is called once for each kind of refusal, with a sentence for people."""

    def __init__(self, policy: OutsidePolicy, limits: ProxyLimits, refused: Callable[[str], None]) -> None:
        self._policy = policy
        self._limits = limits
        self._refused = refused
        self._reported: set[str] = set()
        self._open = 0
        self._left = limits.bytes

    async def serve(self, reader: asyncio.StreamReader, writer: EgressWriter) -> None:
        """One connection from the sandbox, to its end. Closes `writer`; raises nothing but CancelledError."""
        self._open += 1
        try:
            if self._open > self._limits.connections:
                raise _ProxyRefusal(503, f"more than {self._limits.connections} connections at once")
            await self._serve(reader, writer)
        except _ProxyRefusal as refusal:
            # A browser asks again and again.
            if refusal.message not in self._reported and len(self._reported) < REFUSALS_REPORTED:
                self._reported.add(refusal.message)
                self._refused(refusal.message)
            with suppress(OSError):
                await _answer(writer, refusal)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: EgressWriter) -> None:
        async with asyncio.timeout(HEAD_SECONDS):
            head = await _head(reader)
        request, *fields = head.split(b"\r\n")
        try:
            method, target, version = request.split(b" ")
        except ValueError:
            raise _ProxyRefusal(400, "that is no request") from None
        if not _TOKEN.fullmatch(method) or version not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise _ProxyRefusal(400, "that is no request")
        if method == b"CONNECT":
            await self._tunnel(*_authority(target), reader, writer)
        else:
            await self._request(method, self._url(target), fields, reader, writer)

    async def _tunnel(self, host: str, port: int, reader: asyncio.StreamReader, writer: EgressWriter) -> None:
        their_reader, their_writer = await self._connect(host, port)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            hello = await _hello(reader, host)
            self._count(len(hello.raw))
            their_writer.write(hello.raw)
            await self._join(_pieces(reader), writer, their_reader, their_writer, is_tunnel=True)
        finally:
            their_writer.close()

    async def _request(
        self, method: bytes, url: httpx.URL, fields: list[bytes], reader: asyncio.StreamReader, writer: EgressWriter
    ) -> None:
        body = _body(reader, fields)
        their_reader, their_writer = await self._connect(
            url.raw_host.decode("ascii"), url.port or STANDARD_PORTS["http"]
        )
        try:
            their_writer.write(_forwarded(method, url, fields))
            await self._join(body, writer, their_reader, their_writer, is_tunnel=False)
        finally:
            their_writer.close()

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _ProxyRefusal(403, f"more than {self._limits.bytes:,} bytes in all (BROWSER_MAX_BYTES)")

    def _url(self, target: bytes) -> httpx.URL:
        try:
            url = self._policy.check(target.decode("ascii"))
        except UnicodeDecodeError:
            raise _ProxyRefusal(400, "that is no URL") from None
        except PlatformError as error:
            raise _ProxyRefusal(403, error.message) from None
        if url.scheme != "http":
            raise _ProxyRefusal(400, "https goes by CONNECT")
        return url

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            addresses = await self._policy.resolve(host, port)
        except PlatformError as error:
            raise _ProxyRefusal(403, error.message) from None
        except (OSError, UnicodeError):
            raise _ProxyRefusal(502, f"{host} does not resolve") from None
        for address in addresses:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(self._limits.connect_seconds):
                    return await asyncio.open_connection(str(address), port)
        raise _ProxyRefusal(502, f"{host} cannot be reached on port {port}")

    async def _join(
        self,
        outward: AsyncIterator[bytes],
        writer: EgressWriter,
        their_reader: asyncio.StreamReader,
        their_writer: asyncio.StreamWriter,
        *,
        is_tunnel: bool,
    ) -> None:
        clock = asyncio.get_running_loop().time
        seconds = self._limits.idle_seconds

        async def move(source: AsyncIterator[bytes], sink: EgressWriter, idle: asyncio.Timeout, ends: bool) -> None:
            async for chunk in source:
                self._count(len(chunk))
                idle.reschedule(clock() + seconds)
                sink.write(chunk)
                await sink.drain()
            if ends and sink.can_write_eof():
                sink.write_eof()
                await sink.drain()

        async with asyncio.timeout(seconds) as idle:
            ways = [
                asyncio.create_task(move(outward, their_writer, idle, is_tunnel), name="out of a sandbox"),
                asyncio.create_task(move(_pieces(their_reader), writer, idle, True), name="into a sandbox"),
            ]
            try:
                await asyncio.gather(*ways)
            finally:
                await end(*ways)


async def _hello(reader: asyncio.StreamReader, host: str) -> ClientHello:
    """The first message of a tunnel to this host. Raises _Refusal for anything but TLS that names it."""
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            hello = await read_client_hello(reader)
    except NotTls:
        raise _ProxyRefusal(
            403,
            f"a tunnel (CONNECT) to {host} carries TLS only: plain HTTP is sent to the proxy without a tunnel, and "
            "other protocols are not let out",
        ) from None
    except NoClientHello as error:
        message = f"what begins as TLS to {host} is not understood: {error}"
        raise _ProxyRefusal(403, message, ALERT_DECODE_ERROR) from None
    is_address = written_address(host) is not None
    if hello.server_name is None:
        if is_address:
            return hello
        raise _ProxyRefusal(403, f"TLS to {host} does not name its host (SNI)", ALERT_UNRECOGNIZED_NAME)
    try:
        named = normal_host(hello.server_name)
    except PlatformError as error:
        raise _ProxyRefusal(403, f"TLS to {host} names none: {error.message}", ALERT_UNRECOGNIZED_NAME) from None
    if named != host:
        message = f"a tunnel to {host} names another host in TLS: {named}"
        raise _ProxyRefusal(403, message, ALERT_UNRECOGNIZED_NAME)
    return hello


async def _pieces(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(CHUNK_BYTES):
        yield piece


def _body(reader: asyncio.StreamReader, fields: list[bytes]) -> AsyncIterator[bytes]:
    """What follows the head and belongs to its request. Raises _Refusal for a head that two servers could read in
    different ways: where the body ends must not be in doubt."""
    named: dict[bytes, list[bytes]] = {}
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or any(byte in field for byte in b"\r\n\0"):
            raise _ProxyRefusal(400, "that is no request")
        named.setdefault(name.lower(), []).append(value.strip())
    lengths, codings = named.get(b"content-length", []), named.get(b"transfer-encoding", [])
    if len(lengths) + len(codings) > 1:
        raise _ProxyRefusal(400, "the length of the body is given twice")
    if codings:
        if codings[0].lower() != b"chunked":
            raise _ProxyRefusal(400, "the body has a transfer coding other than chunked")
        return _chunked(reader)
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise _ProxyRefusal(400, "the length of the body is no number")
    return _exactly(reader, int(lengths[0]) if lengths else 0)


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, CHUNK_BYTES))
        if not piece:
            raise EOFError
        size -= len(piece)
        yield piece


async def _chunked(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Written anew, without extensions and trailers."""
    while True:
        size = _CHUNK_SIZE.fullmatch(await _line(reader))
        if not size:
            raise _ProxyRefusal(400, "the body is not chunked as its head says")
        if not (left := int(size[1], 16)):
            break
        yield b"%x\r\n" % left
        async for piece in _exactly(reader, left):
            yield piece
        if await _line(reader) != b"\r\n":
            raise _ProxyRefusal(400, "the body is not chunked as its head says")
        yield b"\r\n"
    for _ in range(TRAILERS_MAX):
        if await _line(reader) == b"\r\n":
            yield b"0\r\n\r\n"
            return
    raise _ProxyRefusal(400, f"the body has more than {TRAILERS_MAX} trailers")


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.IncompleteReadError:
        raise EOFError from None
    if len(line) > CHUNK_LINE_BYTES:
        raise _ProxyRefusal(400, "the body is not chunked as its head says")
    return line


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        whole = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        raise EOFError from None
    except asyncio.LimitOverrunError:
        raise _ProxyRefusal(431, f"the head has more than {HEAD_MAX_BYTES:,} bytes") from None
    return whole[:-4]


def _authority(target: bytes) -> tuple[str, int]:
    try:
        host, port = split_port(target.decode("ascii"))
        if port is None:
            raise _ProxyRefusal(400, "CONNECT wants HOST:PORT")
        return normal_host(host), port
    except UnicodeDecodeError:
        raise _ProxyRefusal(400, "that is no host") from None
    except PlatformError as error:
        raise _ProxyRefusal(403, error.message) from None


def _forwarded(method: bytes, url: httpx.URL, fields: list[bytes]) -> bytes:
    """The head as the server gets it: for one request, with the host that was checked and nothing meant for a proxy."""
    host = url.netloc
    kept = [
        field
        for field in fields
        if (name := field.partition(b":")[0].strip().lower()) not in _HOP_BY_HOP and name != b"host" and name
    ]
    lines = [method + b" " + url.raw_path + b" HTTP/1.1", b"Host: " + host, *kept, b"Connection: close"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _answer(writer: EgressWriter, refusal: _ProxyRefusal) -> None:
    if refusal.alert is not None:
        writer.write(alert(refusal.alert))
        await writer.drain()
        return
    body = refusal.message.encode() + b"\n"
    writer.write(
        b"HTTP/1.1 %d Refused\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n" % (refusal.status, len(body)) + body
    )
    await writer.drain()
