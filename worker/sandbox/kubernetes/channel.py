"""Frames to and from the runner in a pod, over the stream that the API server carries.

Whatever comes from the pod is hostile: a length, an order or a text that is not possible is an error.
"""

import asyncio
import json
from typing import Any, Protocol

from backplane.domain.sizes import shortened
from backplane.errors import Superseded, Unavailable
from worker.sandbox.kubernetes.pod.frames import (
    ACKNOWLEDGE,
    FAULT,
    HEADER,
    HELLO,
    MAX_PAYLOAD,
    STATE,
    frame,
    json_frame,
)

ACKNOWLEDGE_BYTES = 256 * 1024


class Stream(Protocol):
    """Both methods raise Unavailable when the connection is lost; `receive` returns None at its orderly end."""

    @property
    def is_closed(self) -> bool: ...
    async def send(self, data: bytes) -> None: ...
    async def receive(self) -> bytes | None: ...


class NotUnderstood(Exception):
    """The pod has sent what the protocol does not allow: it is not, or no longer, our runner."""


class Channel:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._acknowledged = 0
        self._sending = asyncio.Lock()

    async def greet(self, *, generation: int, call: str, offset: int, peek: bool = False) -> dict[str, Any]:
        """Send this worker's generation and how much of the call's output it has; the answer is the runner's state.
        With `peek` the runner sends nothing else over this channel, and another worker's connection stays in use."""
        await self.send_json(HELLO, {"generation": generation, "call": call, "from": offset, "peek": peek})
        kind, payload = await self.receive()
        if kind != STATE:
            raise NotUnderstood(f"a greeting was answered by {kind!r}")
        return parsed(payload)

    @property
    def is_closed(self) -> bool:
        """As far as this end knows: the other end may be gone without a sign."""
        return self._stream.is_closed

    async def send_json(self, kind: bytes, value: Any) -> None:
        await self.send(json_frame(kind, value))

    async def send(self, frames: bytes) -> None:
        # A stream may send in pieces, and the frames of several tasks must not be mixed.
        async with self._sending:
            await self._stream.send(frames)

    async def acknowledge(self, offset: int, *, now: bool = False) -> None:
        """All output up to `offset` has arrived. This is sent only every ACKNOWLEDGE_BYTES, unless `now`."""
        if offset - self._acknowledged >= ACKNOWLEDGE_BYTES or (now and offset > self._acknowledged):
            self._acknowledged = offset
            await self.send(frame(ACKNOWLEDGE, str(offset).encode()))

    async def receive(self) -> tuple[bytes, bytes]:
        """The next frame: kind and payload. Raises Unavailable when the connection ends, Superseded, NotUnderstood."""
        while len(self._received) < HEADER.size:
            await self._more()
        kind, length = HEADER.unpack_from(self._received)
        if length > MAX_PAYLOAD:
            raise NotUnderstood("a frame is longer than any can be")
        while len(self._received) < HEADER.size + length:
            await self._more()
        payload = bytes(memoryview(self._received)[HEADER.size : HEADER.size + length])
        del self._received[: HEADER.size + length]
        if kind == FAULT:
            fault = parsed(payload)
            if fault.get("superseded"):
                raise Superseded("another worker uses the sandbox")
            raise NotUnderstood(shortened(str(fault.get("message")), 500))
        return kind, payload

    async def _more(self) -> None:
        data = await self._stream.receive()
        if data is None:
            raise Unavailable("the connection to the sandbox has ended", part="sandbox")
        self._received += data


def parsed(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise NotUnderstood("a frame is no JSON") from error
    if not isinstance(value, dict):
        raise NotUnderstood("a frame is no object")
    return value
