"""A small HTTP server on loopback, with or without TLS, whose answers a function gives. One request a connection, and
each answer says so."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

LENGTH_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Heard:
    """A request. `headers` by their names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"


@asynccontextmanager
async def answering(answer: Callable[[Heard], Answer], tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _request(reader)
            given = answer(request)
            head = f"HTTP/1.1 {given.status} X\r\nContent-Type: {given.content_type}\r\n"
            head += f"Content-Length: {len(given.body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + given.body)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}"
    finally:
        server.close()
        await server.wait_closed()


async def _request(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ", 2)
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    lower = {name.lower(): value for name, value in headers.items()}
    body = await reader.readexactly(min(int(lower.get("content-length", 0)), LENGTH_MAX))
    return Heard(method, target, lower, body)
