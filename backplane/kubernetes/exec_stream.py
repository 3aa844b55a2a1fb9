"""Two pipes to a process in a pod, through the API server: bytes to its standard input, bytes from its output.

What it does not do: standard input cannot be closed without closing all of it, so a process that must see an end has to
find it in the bytes. A connection that breaks loses what was on its way; both sides must be able to resume.
"""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import aiohttp

from backplane.errors import Unavailable

PROTOCOL = "v4.channel.k8s.io"
FRAME_BYTES = 32 * 1024
PING_SECONDS = 5.0
SILENT_PINGS = 4
"""After so many pings without any answer the connection is given up: 20 seconds."""
COMPLAINT_BYTES = 2000

_STDIN, _STDOUT, _STDERR, _STATUS = range(4)
_DATA = (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT)


class ExecStream:
    """Made by `ApiServer.exec`. One task may send while another receives."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool], pod: str, part: str) -> None:
        self._socket = socket
        self._pod = pod
        self._part = part
        self._complaint = b""
        self._is_over = False

    @property
    def is_closed(self) -> bool:
        """As far as this end knows: the other end may be gone without a sign."""
        return self._is_over or self._socket.closed

    async def send(self, data: bytes) -> None:
        """Send all of it. This waits for a process that does not read. Raises Unavailable when the connection is
        lost."""
        view = memoryview(data)
        try:
            for start in range(0, len(view), FRAME_BYTES):
                await self._socket.send_bytes(b"\x00" + view[start : start + FRAME_BYTES])
        except (ConnectionError, aiohttp.ClientError) as error:
            raise self._lost(str(error)) from None

    async def receive(self) -> bytes | None:
        """The next bytes of the process's standard output; None when it has ended with success. Raises Unavailable when
        it failed, with the end of its standard error, or when the connection is lost. A silent connection is given up
        after 20 seconds, but only while somebody waits here."""
        while not self._is_over:
            kind, content = await self._next()
            if kind is aiohttp.WSMsgType.PING:
                await self._without_delay(self._socket.pong(content))
            elif kind in _DATA:
                data: bytes = content.encode() if isinstance(content, str) else content
                if len(data) < 2:
                    continue  # each channel begins with an empty message
                if data[0] == _STDOUT:
                    return data[1:]
                if data[0] == _STDERR:
                    self._complaint = (self._complaint + data[1:])[-COMPLAINT_BYTES:]
                elif data[0] == _STATUS:
                    self._end(data[1:])
            elif kind is not aiohttp.WSMsgType.PONG:
                raise self._lost("it was closed")
        return None

    async def _next(self) -> tuple[aiohttp.WSMsgType, Any]:
        for _ in range(SILENT_PINGS):
            try:
                message = await self._socket.receive(timeout=PING_SECONDS)
                return message.type, message.data
            except TimeoutError:
                await self._without_delay(self._socket.ping())
        raise self._lost(f"nothing came for {SILENT_PINGS * PING_SECONDS:g} seconds")

    async def _without_delay(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send a ping or a pong. Where it is stuck behind data that nobody reads, go on looking for a sign of life."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                await sending
        except TimeoutError:
            return
        except (ConnectionError, aiohttp.ClientError) as error:
            raise self._lost(str(error)) from None

    def _end(self, status: bytes) -> None:
        found = json.loads(status)
        if found.get("status") != "Success":
            raise self._lost(str(found.get("message") or "it failed"))
        self._is_over = True

    def _lost(self, cause: str) -> Unavailable:
        complaint = self._complaint.decode(errors="replace").strip()
        reported = f" (it said: {complaint})" if complaint else ""
        return Unavailable(f"the connection into pod {self._pod} is lost: {cause}{reported}", part=self._part)
