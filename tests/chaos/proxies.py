"""The network between the platform and its servers, as it is on a bad day.

`TcpProxy` passes bytes on, and on demand cuts, refuses, delays or holds them back. `S3Proxy` knows requests: it answers
some by itself, with an error or late. Both live on the loop of whoever starts them.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import StrEnum
from typing import Self

HOST = "127.0.0.1"
CHUNK = 64 * 1024


class TcpProxy:
    """Listens on `port` and passes everything on to the port `target`, one connection for one."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.refuses = False
        self.delay_seconds = 0.0
        self._target = target
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Reset every connection that stands."""
        for writer in list(self._open):
            writer.transport.abort()

    def silence(self, is_silent: bool) -> None:
        """Let nothing through, in either direction, on connections that stay open."""
        if is_silent:
            self._flowing.clear()
        else:
            self._flowing.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        server = await asyncio.start_server(self._accept, HOST, 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.silence(False)
            self.cut()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._one(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        with self._tracked(writer), suppress(OSError, asyncio.IncompleteReadError):
            await self.serve(reader, writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both sides have ended it. Raises OSError."""
        from_target, to_target = await self.connect()
        with self._tracked(to_target):
            await asyncio.gather(self.pump(reader, to_target), self.pump(from_target, writer))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(HOST, self._target)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flowing.wait()
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if writer.transport.is_closing():
                    return
                writer.write(data)
                await writer.drain()
        writer.close()

    @contextmanager
    def _tracked(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._open.add(writer)
        try:
            yield
        finally:
            self._open.discard(writer)
            writer.close()


class S3Fault(StrEnum):
    NONE = ""
    ERROR = "500"
    BUSY = "503"
    LATE = "500 after it was done"
    SLOW = "slow"
    FORBIDDEN = "403"
    NO_BUCKET = "404"
    FULL = "507"


class S3Proxy(TcpProxy):
    """One request a connection. `fault` holds for each request that begins while it is set."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.fault = S3Fault.NONE
        self.methods: tuple[bytes, ...] = ()
        """Those that the fault holds for; empty: all."""
        self.slow_seconds = 1.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        fault = self.fault if not self.methods or head.startswith(self.methods) else S3Fault.NONE
        if fault is S3Fault.SLOW:
            await asyncio.sleep(self.slow_seconds)
        body = await _body(reader, head)
        if fault in _ANSWERS:
            writer.write(_answer(fault))
            await writer.drain()
            return
        from_target, to_target = await self.connect()
        with self._tracked(to_target):
            to_target.write(_once(head) + body)
            await to_target.drain()
            if fault is S3Fault.LATE:
                await from_target.read()
                writer.write(_answer(S3Fault.ERROR))
                await writer.drain()
            else:
                await self.pump(from_target, writer)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if length := re.search(rb"(?i)\r\ncontent-length: *(\d+)", head):
        return await reader.readexactly(int(length[1]))
    if re.search(rb"(?i)\r\ntransfer-encoding:.*chunked", head):
        body = b""
        while not body.endswith(b"0\r\n\r\n"):
            line = await reader.readuntil(b"\r\n")
            body += line + await reader.readexactly(int(line.split(b";")[0], 16) + 2)
        return body
    return b""


def _once(head: bytes) -> bytes:
    """The request's head, asking the server to close after its answer, which so ends where the connection does."""
    kept = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
    return kept[:-2] + b"Connection: close\r\n\r\n"


_ANSWERS = {
    S3Fault.ERROR: ("InternalError", b"500 Internal Server Error"),
    S3Fault.BUSY: ("SlowDown", b"503 Slow Down"),
    S3Fault.FORBIDDEN: ("AccessDenied", b"403 Forbidden"),
    S3Fault.NO_BUCKET: ("NoSuchBucket", b"404 Not Found"),
    S3Fault.FULL: ("XMinioStorageFull", b"507 Insufficient Storage"),
}


def _answer(fault: S3Fault) -> bytes:
    code, status = _ANSWERS[fault]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
