"""HTTP by hand, for requests that no client library would send."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

LONGEST_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class RawConnection:
    """`source`: the address on this machine that it comes from, e.g. 127.0.0.2."""

    def __init__(self, url: str, source: str = "127.0.0.1") -> None:
        self._url = httpx.URL(url)
        self._source = source

    async def __aenter__(self) -> Self:
        host, port = self._url.host, self._url.port
        async with asyncio.timeout(LONGEST_SECONDS):
            self.reader, self.writer = await asyncio.open_connection(host, port, local_addr=(self._source, 0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, data: bytes) -> None:
        """Nothing is raised when the other end does not take it: what it answers is looked at."""
        with suppress(OSError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self) -> Answer | None:
        """The next one with a Content-Length; None when the connection was closed instead."""
        async with asyncio.timeout(LONGEST_SECONDS):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, OSError):
                return None
            first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
            pairs = (line.split(":", 1) for line in lines)
            headers = {name.strip().lower(): value.strip() for name, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return Answer(int(first.split()[1]), headers, body)

    async def ask(self, data: bytes) -> Answer | None:
        await self.send(data)
        return await self.answer()

    async def is_closed(self) -> bool:
        """Waits until the other end has closed it; what it says until then is dropped."""
        async with asyncio.timeout(LONGEST_SECONDS):
            with suppress(OSError):
                while await self.reader.read(65536):
                    pass
            return True


@asynccontextmanager
async def connections(url: str, count: int, source: str = "127.0.0.1") -> AsyncIterator[list[RawConnection]]:
    opened: list[RawConnection] = []
    try:
        for _ in range(count):
            opened.append(await RawConnection(url, source).__aenter__())
        yield opened
    finally:
        for connection in opened:
            await connection.__aexit__(None, None, None)


def get(path: str, **headers: str) -> bytes:
    return request("GET", path, **headers)


def request(method: str, path: str, **headers: str) -> bytes:
    """The head; underscores in names stand for hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: api.test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()
