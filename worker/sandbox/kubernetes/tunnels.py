"""The worker's end of what a command in a pod sends through its way out: each connection is answered by `egress`.

A tunnel lives no longer than the stream that carries it. What the pod sends is hostile: numbers that are not open are
passed over, and one that sends more than its reader takes is closed.
"""

import asyncio
from contextlib import suppress

from backplane.errors import Unavailable
from backplane.process.tasks import end
from worker.sandbox.base import Egress
from worker.sandbox.kubernetes.channel import Channel, NotUnderstood
from worker.sandbox.kubernetes.pod.frames import CHUNK, TUNNEL, TUNNEL_DATA, TUNNEL_END, frame
from worker.sandbox.kubernetes.pod.tunnels import MOST_AT_ONCE, NUMBER

HEAD_BYTES = 64 * 1024
UNREAD_MAX = 4 * 1024 * 1024
"""How much may arrive for a reader that does not read at the moment."""

KINDS = frozenset({TUNNEL, TUNNEL_DATA, TUNNEL_END})


class Tunnels:
    """The tunnels of one command on one stream. `close` them with the stream."""

    def __init__(self, channel: Channel, egress: Egress | None) -> None:
        self._channel = channel
        self._egress = egress
        self._open: dict[int, _Tunnel] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def receive(self, kind: bytes, payload: bytes) -> None:
        """Raises NotUnderstood for a way out that the command was not given."""
        if self._egress is None or len(payload) < NUMBER.size:
            raise NotUnderstood("a way out that it was not given")
        (number,) = NUMBER.unpack_from(payload)
        if kind == TUNNEL:
            if len(self._open) >= MOST_AT_ONCE or number in self._open:
                raise NotUnderstood("more connections than there can be")
            tunnel = self._open[number] = _Tunnel(number, self._channel)
            task = asyncio.create_task(self._answer(tunnel, self._egress), name="egress of a pod")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif found := self._open.get(number):
            found.receive(None if kind == TUNNEL_END else payload[NUMBER.size :])

    async def close(self) -> None:
        await end(*self._tasks)
        self._open.clear()

    async def _answer(self, tunnel: "_Tunnel", egress: Egress) -> None:
        try:
            await egress(tunnel.reader, tunnel)
        except ConnectionError:
            pass
        finally:
            self._open.pop(tunnel.number, None)
            with suppress(Unavailable):
                await tunnel.finish()


class _Tunnel:
    """An `EgressWriter` towards the pod, and the reader of what comes from there."""

    def __init__(self, number: int, channel: Channel) -> None:
        self.number = number
        self.reader = asyncio.StreamReader(limit=HEAD_BYTES)
        self.reader.set_transport(_Pausing(self))  # type: ignore[arg-type]
        self.is_paused = False
        self._unread = 0
        self._channel = channel
        self._unsent = bytearray()
        self._is_closed = False
        self._ended = False
        self._wrote_eof = False
        self._sent_eof = False

    def receive(self, data: bytes | None) -> None:
        """None: the connection is gone; empty: the command sends no more."""
        if self._ended:
            return
        if data:
            self._unread = self._unread + len(data) if self.is_paused else 0
            if self._unread <= UNREAD_MAX:
                self.reader.feed_data(data)
                return
        self._ended = True
        if data or data is None:
            self._is_closed = True
        self.reader.feed_eof()

    def write(self, data: bytes) -> None:
        if not self._is_closed:
            self._unsent += data

    async def drain(self) -> None:
        if self._is_closed:
            raise ConnectionResetError("the command has closed its connection")
        try:
            while self._unsent:
                piece = bytes(self._unsent[:CHUNK])
                del self._unsent[: len(piece)]
                await self._channel.send(frame(TUNNEL_DATA, NUMBER.pack(self.number) + piece))
            if self._wrote_eof and not self._sent_eof:
                self._sent_eof = True
                await self._channel.send(frame(TUNNEL_DATA, NUMBER.pack(self.number)))
        except Unavailable as error:
            raise ConnectionResetError(error.message) from None

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Goes out with the next `drain`."""
        self._wrote_eof = True

    def close(self) -> None:
        """What was written still goes out, by `finish`."""

    async def finish(self) -> None:
        if not self._is_closed:
            with suppress(ConnectionError):
                await self.drain()
            self._is_closed = True
            await self._channel.send(frame(TUNNEL_END, NUMBER.pack(self.number)))


class _Pausing:
    """The part of a transport that a StreamReader speaks to when it has more than it wants."""

    def __init__(self, tunnel: _Tunnel) -> None:
        self._tunnel = tunnel

    def pause_reading(self) -> None:
        self._tunnel.is_paused = True

    def resume_reading(self) -> None:
        self._tunnel.is_paused = False
