"""One end of a conversation in a pod, on the runner's loop."""

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
    """One end of a conversation; closed by whatever is wrong with it."""

    def __init__(self, joined: socket.socket, runner: Runner, selector: selectors.BaseSelector) -> None:
        joined.setblocking(False)
        self._joined = joined
        self._runner = runner
        self._selector = selector
        self._heard = bytearray()
        self._unsaid = bytearray()
        self._closed = False
        self._events = selectors.EVENT_READ
        self.greeted = False
        self.end_after_saying = False
        self.sent = 0
        self.told_end: Any = None
        self.source: Iterator[bytes] | None = None
        selector.register(joined, selectors.EVENT_READ, self._ready)

    @property
    def unsaid_bytes(self) -> int:
        return len(self._unsaid)

    def say(self, frames: bytes) -> None:
        self._unsaid += frames
        self.want()

    def want(self) -> None:
        """Be called when something can be said, if there is something."""
        if self._closed:
            return
        if not self._unsaid:
            self._refill()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsaid else 0)
        if events != self._events:
            self._selector.modify(self._joined, events, self._ready)
            self._events = events

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._selector.unregister(self._joined)
            self._joined.close()
            self._runner.left(self)

    def _ready(self, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and not self._closed:
                self._say()
            if events & selectors.EVENT_READ and not self._closed:
                self._hear()
        except Exception as error:
            # A worker that says what makes no sense, or a full disk: it is told, and may come back.
            with contextlib.suppress(OSError):
                self._joined.send(json_frame(FAULT, {"message": f"{type(error).__name__}: {error}"}))
            self.close()

    def _say(self) -> None:
        while self._unsaid:
            try:
                count = self._joined.send(self._unsaid)
            except BlockingIOError:
                break
            del self._unsaid[:count]
            if not self._unsaid:
                self._refill()
        if not self._unsaid and self.end_after_saying:
            self.close()
            return
        self.want()

    def _refill(self) -> None:
        self._unsaid += self._runner.next_to_say(self)

    def _hear(self) -> None:
        try:
            said = self._joined.recv(4 * CHUNK)
        except BlockingIOError:
            return
        if not said:
            self.close()
            return
        self._heard += said
        at = 0
        while len(self._heard) - at >= HEADER.size and not self._closed:
            kind, length = HEADER.unpack_from(self._heard, at)
            if length > MAX_PAYLOAD:
                raise ValueError("a frame is too long")
            if len(self._heard) - at < HEADER.size + length:
                break
            begin = at + HEADER.size
            at = begin + length
            self._runner.hear(self, kind, bytes(self._heard[begin:at]))
        del self._heard[:at]
