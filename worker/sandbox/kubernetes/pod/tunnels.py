"""The command's way out: connections to a socket in the pod, each carried over the worker's stream and answered there.

The pod has no network; this gives it none. What comes through is the worker's to judge. Connections last no longer than
the stream that carries them, nor than the command: a broken one is for the command to make again.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
from typing import TYPE_CHECKING

from worker.sandbox.kubernetes.pod.frames import CHUNK, TUNNEL, TUNNEL_DATA, TUNNEL_END, frame

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBER = struct.Struct(">I")
MOST_AT_ONCE = 256
UNSENT_MAX = 1024 * 1024
"""As much may wait for the stream; then nothing more is read from the command."""
UNTAKEN_MAX = 8 * 1024 * 1024
"""A connection whose command does not take so much is closed."""


class PodTunnels:
    """`send` puts frames on the stream; `unsent` is how many bytes wait there."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        path: str,
        send: Callable[[bytes], None],
        unsent: Callable[[], int],
    ) -> None:
        self._selector = selector
        self._path = path
        self._send = send
        self._unsent = unsent
        self._open: dict[int, _PodTunnel] = {}
        self._last = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, lambda _: self._accept())

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = self._listener.accept()
            if len(self._open) >= MOST_AT_ONCE:
                accepted.close()
                return
            accepted.setblocking(False)
            self._last += 1
            self._open[self._last] = _PodTunnel(self._last, accepted, self)
            self._send(frame(TUNNEL, NUMBER.pack(self._last)))
            self.steer()

    def receive(self, kind: bytes, payload: bytes) -> None:
        """From the worker. A number that is not open any more is passed over: both ends may close at once."""
        (number,) = NUMBER.unpack_from(payload)
        tunnel = self._open.get(number)
        if tunnel is None:
            return
        if kind == TUNNEL_DATA:
            tunnel.give(payload[NUMBER.size :])
        else:
            tunnel.finish()

    def steer(self) -> None:
        """Called on each turn of the loop: read from the command only while the stream takes more."""
        reads = self._unsent() < UNSENT_MAX
        for tunnel in list(self._open.values()):
            tunnel.update_events(reads)

    def drop_all(self) -> None:
        """The stream that carried them is gone."""
        for tunnel in list(self._open.values()):
            tunnel.close(notify=False)

    def close(self) -> None:
        self.drop_all()
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def send(self, kind: bytes, number: int, data: bytes = b"") -> None:
        self._send(frame(kind, NUMBER.pack(number) + data))

    def forget(self, number: int) -> None:
        self._open.pop(number, None)

    @property
    def selector(self) -> selectors.BaseSelector:
        return self._selector


class _PodTunnel:
    def __init__(self, number: int, joined: socket.socket, tunnels: PodTunnels) -> None:
        self._number = number
        self._joined = joined
        self._tunnels = tunnels
        self._untaken = bytearray()
        self._finished = False
        self._has_sent_all = False
        self._ends_reading = False
        self._closed = False
        self._events = 0

    def give(self, data: bytes) -> None:
        """Data for the command. None at all: the other end sends no more, and still receives."""
        self._ends_reading = not data
        self._untaken += data
        self._put()
        if len(self._untaken) > UNTAKEN_MAX:
            self.close()

    def finish(self) -> None:
        """The other end has sent all, and receives no more."""
        self._finished = True
        self._put()

    def update_events(self, reads: bool) -> None:
        if self._closed:
            return
        events = (selectors.EVENT_READ if reads and not self._has_sent_all else 0) | (
            selectors.EVENT_WRITE if self._untaken else 0
        )
        if events == self._events:
            return
        if not self._events:
            self._tunnels.selector.register(self._joined, events, self._ready)
        elif events:
            self._tunnels.selector.modify(self._joined, events, self._ready)
        else:
            self._tunnels.selector.unregister(self._joined)
        self._events = events

    def close(self, notify: bool = True) -> None:
        if self._closed:
            return
        if self._events:
            self._tunnels.selector.unregister(self._joined)
        self._closed = True
        self._joined.close()
        self._tunnels.forget(self._number)
        if notify and not self._finished:
            self._tunnels.send(TUNNEL_END, self._number)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE and not self._closed:
            self._put()
        if events & selectors.EVENT_READ and not self._closed:
            self._take()

    def _put(self) -> None:
        try:
            while self._untaken and not self._closed:
                count = self._joined.send(self._untaken[:CHUNK])
                del self._untaken[:count]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._finished:
            self.close()
        elif self._ends_reading:
            with contextlib.suppress(OSError):
                self._joined.shutdown(socket.SHUT_WR)

    def _take(self) -> None:
        try:
            data = self._joined.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            self.close()
        if data:
            self._tunnels.send(TUNNEL_DATA, self._number, data)
        elif not self._closed:
            # It sends no more, and may still receive the answer.
            self._has_sent_all = True
            self._tunnels.send(TUNNEL_DATA, self._number)
