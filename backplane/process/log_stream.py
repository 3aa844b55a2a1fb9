"""Standard output and error of a process that must live longer than the readers of its log.

Writing never ends a process and never holds one up: a line that cannot be written (the reader is gone, the disk is
full, the terminal is lost) or would have to wait (nobody reads the pipe) is left out, and the next one that can be
written says how many were. It is not kept for later: an operator wants to see the present state, and memory is not a
log.
"""

import io
import json
import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

WAIT_SECONDS = 0.05
"""How long to wait, once, for a reader that is slow. After that nothing waits until it has read on."""
PIPE_BYTES = 4096
"""What a pipe that says it has room takes without waiting (PIPE_BUF of Linux)."""


def keep_standard_descriptors() -> None:
    """Open what is closed of standard input, output and error to nothing. Else the next file that is opened gets its
    number, and what is meant for the one goes into the other. To be called before anything is opened."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
    # Python has None for what was closed; libraries ask it whether it is a terminal.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def last_words(text: str) -> None:
    """Write a last line for whoever started this process."""
    LogStream(sys.stderr).write(f"{text}\n")


class LogStream(io.TextIOBase):
    """What a log is written to, in place of `stream` (None: closed from the start). Raises nothing and waits for
    nothing. Any thread may write."""

    encoding = "utf-8"

    def __init__(self, stream: TextIO | None, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self._lock = threading.Lock()
        self._put, self._descriptor = _way_to(stream)
        self._cut_off = b""
        """The rest of a line of which the reader has the beginning."""
        self._lost = 0
        self._is_blocked = False

    def write(self, text: str) -> int:
        line = text.encode("utf-8", "backslashreplace")
        with self._lock:
            self._cut_off = self._cut_off[self._send(self._cut_off) :]
            data = self._note() + line
            written = 0 if self._cut_off else self._send(data)
            if written:
                self._cut_off, self._lost = data[written:], 0
            else:
                self._lost += 1
        return len(text)

    def flush(self) -> None:
        """There is nothing to flush: each line is written at once."""

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _send(self, data: bytes) -> int:
        """Write these bytes, and return how many of them were written."""
        done, has_waited = 0, self._is_blocked
        with suppress(OSError, ValueError):  # ValueError: somebody has closed the stream
            while done < len(data):
                try:
                    done += self._put(data[done:])
                    self._is_blocked = False
                except BlockingIOError:
                    if has_waited or not _has_room(self._descriptor, WAIT_SECONDS):
                        self._is_blocked = True
                        break
                    has_waited = True
        return done

    def _note(self) -> bytes:
        if not self._lost:
            return b""
        event = f"{self._lost} lines of this log could not be written"
        if not self._as_json:
            return f"{event}\n".encode()
        return (
            f"{json.dumps({'event': event, 'level': 'warning', 'timestamp': datetime.now(UTC).isoformat()})}\n".encode()
        )


def _way_to(stream: TextIO | None) -> tuple[Callable[[bytes], int], int]:
    """What writes some bytes and says how many, and the descriptor that it writes to. It raises BlockingIOError where
    it would have to wait, if the system can tell."""
    if stream is None:
        return len, -1
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError):
        return _by_stream(stream), -1
    if stat.S_ISSOCK(mode):
        with suppress(OSError):
            peer = socket.socket(fileno=os.dup(descriptor))
            return (lambda data: peer.send(data, socket.MSG_DONTWAIT)), descriptor
    if stat.S_ISFIFO(mode) or os.isatty(descriptor):
        # Whether writing waits is a property that all who share the descriptor would share: so it is opened anew.
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            own = os.open(f"/proc/self/fd/{descriptor}", flags)
            return (lambda data: os.write(own, data)), own
        return (lambda data: _write_if_room(descriptor, data)), descriptor
    return (lambda data: os.write(descriptor, data)), descriptor


def _by_stream(stream: Any) -> Callable[[bytes], int]:
    def put(data: bytes) -> int:
        stream.write(data.decode("utf-8", "replace"))
        stream.flush()
        return len(data)

    return put


def _write_if_room(descriptor: int, data: bytes) -> int:
    if not _has_room(descriptor, 0):
        raise BlockingIOError
    return os.write(descriptor, data[:PIPE_BYTES])


def _has_room(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))
