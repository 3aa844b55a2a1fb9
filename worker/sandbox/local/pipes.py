"""The two pipes of a command: what it reads and what it writes.

Plain pipes on the event loop, because asyncio's own put a buffer between the command and the sink, keep standard output
and error apart, and may hand the command a socket as its input. The kernel blocks a command that writes faster than the
sink takes it; nothing is gathered here.
"""

import asyncio
import os
from types import TracebackType
from typing import Self

from worker.sandbox.base import OutputSink

CHUNK_BYTES = 64 * 1024

_DRAIN_CHUNKS = 256
"""Several times what a pipe can hold at most (its size is the kernel's, up to 1 MiB)."""


class OutputPipe:
    """Passes every chunk to the sink as soon as it is there. `broken` ends with the sink's exception when it raises."""

    def __init__(self, sink: OutputSink) -> None:
        self._loop = asyncio.get_running_loop()
        self._sink = sink
        self.broken: asyncio.Future[None] = self._loop.create_future()
        self.last_chunk = b""
        self._read_end, self.write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop.add_reader(self._read_end, self._take)

    def _take(self) -> bool:
        try:
            chunk = os.read(self._read_end, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._loop.remove_reader(self._read_end)
            return False
        self.last_chunk = chunk
        if not self.broken.done():
            try:
                self._sink(chunk)
            except Exception as error:
                self.broken.set_exception(error)
        return True

    def close_write_end(self) -> None:
        """Close this process's copy, once the command has its own: only then is the end of the output seen."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def drain(self) -> None:
        """Pass on what is still in the pipe. This is bounded, for a process that got away may write for ever."""
        for _ in range(_DRAIN_CHUNKS):
            if not self._take():
                break

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
        self.close_write_end()
        if self.broken.done():
            self.broken.exception()
        else:
            self.broken.cancel()


class InputPipe:
    """Feeds `data` to the command as it takes it, then closes. A command that does not read it is no error."""

    def __init__(self, data: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(data)
        self.read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._loop.add_writer(self._write_end, self._feed)

    def _feed(self) -> None:
        try:
            self._rest = self._rest[os.write(self._write_end, self._rest[:CHUNK_BYTES]) :] if self._rest else self._rest
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._rest = self._rest[:0]
        if not self._rest:
            self._close_write_end()

    def _close_write_end(self) -> None:
        if self._write_end >= 0:
            self._loop.remove_writer(self._write_end)
            os.close(self._write_end)
            self._write_end = -1

    def close_read_end(self) -> None:
        """Close this process's copy, once the command has its own: else the end of the command would never be
        noticed."""
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close_write_end()
        self.close_read_end()
