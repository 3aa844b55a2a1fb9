"""The last of a command's output, for a connection that comes back."""

from __future__ import annotations

from worker.sandbox.kubernetes.pod.frames import CHUNK

KEPT_OUTPUT = 1024 * 1024
"""A command that is further ahead of its reader than this has to wait."""


class Spool:
    """The last of a command's output. `start`, `end`: offsets in all of it."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self.acknowledged = 0
        self._kept = bytearray()

    def add(self, chunk: bytes) -> None:
        self._kept += chunk
        self.end += len(chunk)
        surplus = len(self._kept) - KEPT_OUTPUT
        if surplus > 0:
            self._drop(min(surplus, self.acknowledged - self.start))

    @property
    def full(self) -> bool:
        return self.end - self.acknowledged >= KEPT_OUTPUT

    def read(self, offset: int) -> bytes:
        begin = offset - self.start
        return bytes(self._kept[begin : begin + CHUNK])

    def _drop(self, count: int) -> None:
        if count > 0:
            del self._kept[:count]
            self.start += count
