"""One connection of a worker to the runner in a pod, on the runner's loop."""

from __future__ import annotations

import contextlib
import selectors
from typing import TYPE_CHECKING, Any

from worker.sandbox.kubernetes.pod.frames import CHUNK, FAULT, HEADER, MAX_PAYLOAD, json_frame

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from worker.sandbox.kubernetes.pod.runner import Runner


class Connection:
    """One end of a connection. Whatever is wrong with it closes it."""

    def __init__(self, joined: socket.socket, runner: Runner, selector: selectors.BaseSelector) -> None:
        joined.setblocking(False)
        self._joined = joined
        self._runner = runner
        self._selector = selector
        self._received = bytearray()
        self._send_buffer = bytearray()
        self._closed = False
        self._events = selectors.EVENT_READ
        self.greeted = False
        self.close_when_sent = False
        self.sent = 0
        self.sent_end: Any = None
        self.source: Iterator[bytes] | None = None
        selector.register(joined, selectors.EVENT_READ, self._ready)

    @property
    def unsent_bytes(self) -> int:
        return len(self._send_buffer)

    def send(self, frames: bytes) -> None:
        self._send_buffer += frames
        self.update_events()

    def update_events(self) -> None:
        """Wait for the socket to take more bytes while there is something to send, and only then."""
        if self._closed:
            return
        if not self._send_buffer:
            self._refill()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._send_buffer else 0)
        if events != self._events:
            self._selector.modify(self._joined, events, self._ready)
            self._events = events

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._selector.unregister(self._joined)
            self._joined.close()
            self._runner.disconnected(self)

    def _ready(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and not self._closed:
                self._write()
            if events & selectors.EVENT_READ and not self._closed:
                self._read()
        except Exception as error:
            # A frame that makes no sense, or a full disk: the worker gets the error, and may come back.
            with contextlib.suppress(OSError):
                self._joined.send(json_frame(FAULT, {"message": f"{type(error).__name__}: {error}"}))
            self.close()

    def _write(self) -> None:
        while self._send_buffer:
            try:
                count = self._joined.send(self._send_buffer)
            except BlockingIOError:
                break
            del self._send_buffer[:count]
            if not self._send_buffer:
                self._refill()
        if not self._send_buffer and self.close_when_sent:
            self.close()
            return
        self.update_events()

    def _refill(self) -> None:
        self._send_buffer += self._runner.next_frames(self)

    def _read(self) -> None:
        try:
            data = self._joined.recv(4 * CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._received += data
        at = 0
        while len(self._received) - at >= HEADER.size and not self._closed:
            kind, length = HEADER.unpack_from(self._received, at)
            if length > MAX_PAYLOAD:
                raise ValueError("a frame is too long")
            if len(self._received) - at < HEADER.size + length:
                break
            begin = at + HEADER.size
            at = begin + length
            self._runner.receive(self, kind, bytes(self._received[begin:at]))
        del self._received[:at]
