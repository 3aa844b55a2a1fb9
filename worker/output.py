"""From the bytes that a step writes to the lines that watchers see and the text that its result keeps.

A step may write without end. So there are two limits: lines are emitted until the first is reached, then output is only
counted, and one note says how much there was; the result keeps the beginning and the end. What is held in memory never
depends on how much was written. Bytes that are not UTF-8 become U+FFFD; control characters stay.
"""

from collections.abc import Callable

from backplane.sizes import readable_size

LINE_COST = 64
"""Bytes that a line counts for on top of its own: events have a frame, and a million empty lines are not free."""

_CHARACTER_BYTES = 4


class OutputCapture:
    """`write` the chunks in order, then `finish` once. `emit` gets each line without its line break. All limits are in
    bytes of output; `max_bytes` and `result_max_bytes` are for all of it, `line_max_bytes` for each line."""

    def __init__(
        self, emit: Callable[[str], None], *, max_bytes: int, line_max_bytes: int, result_max_bytes: int
    ) -> None:
        self._emit = emit
        self._max_bytes = max_bytes
        self._line_max_bytes = line_max_bytes
        self._result_max_bytes = result_max_bytes

        self._pending = b""
        self._line_goes_on = False
        self._full = False
        self._cost = 0
        self._emitted_bytes = 0
        self._emitted_lines = 0

        self._total_bytes = 0
        self._line_breaks = 0
        self._head = b""
        self._tail = b""

    def write(self, chunk: bytes) -> None:
        self._total_bytes += len(chunk)
        self._line_breaks += chunk.count(b"\n")
        if len(self._head) < self._result_max_bytes:
            self._head += chunk[: self._result_max_bytes - len(self._head)]
        self._tail = (self._tail + chunk)[-self._result_max_bytes :]
        if self._full:
            return

        *lines, rest = (self._pending + chunk).split(b"\n")
        for line in lines:
            self._take_line(line, b"\n")
            if self._full:
                return
        *pieces, self._pending = _cut(rest, self._line_max_bytes)
        for piece in pieces:
            self._take_piece(piece)
            self._line_goes_on = True

    def finish(self) -> str:
        """Emit what is left and the note about what was not; returns the text for the result."""
        if self._pending and not self._full:
            self._take_line(self._pending, b"")
        if self._full:
            unfinished = not self._tail.endswith(b"\n")
            lines = self._line_breaks + unfinished - self._emitted_lines
            size = readable_size(self._total_bytes - self._emitted_bytes)
            self._emit(
                f"… {lines:,} more {'line' if lines == 1 else 'lines'} ({size}) not kept; "
                "the limit is STEP_OUTPUT_MAX_BYTES"
            )
        return self._text()

    def _take_line(self, line: bytes, line_break: bytes) -> None:
        text = line.removesuffix(b"\r")
        if text or not self._line_goes_on:
            for piece in _cut(text, self._line_max_bytes):
                self._take_piece(piece)
        self._line_goes_on = False
        if not self._full:
            self._emitted_bytes += len(line) - len(text) + len(line_break)
            self._emitted_lines += 1

    def _take_piece(self, piece: bytes) -> None:
        self._cost += len(piece) + LINE_COST
        self._full = self._full or self._cost > self._max_bytes
        if not self._full:
            self._emit(piece.decode("utf-8", "replace"))
            self._emitted_bytes += len(piece)

    def _text(self) -> str:
        if self._total_bytes <= self._result_max_bytes:
            return self._head.decode("utf-8", "replace")
        half = self._result_max_bytes // 2
        head = self._head[: _character_start(self._head, half)]
        tail = self._tail[_character_start(self._tail, len(self._tail) - half) :] if half else b""
        left_out = readable_size(self._total_bytes - len(head) - len(tail))
        note = f"\n… {left_out} left out here; the limit is STEP_RESULT_MAX_BYTES …\n"
        return head.decode("utf-8", "replace") + note + tail.decode("utf-8", "replace")


def _cut(data: bytes, max_bytes: int) -> list[bytes]:
    """Into pieces of at most `max_bytes`, none beginning inside a character; one piece, maybe empty, at least."""
    pieces, start = [], 0
    while len(data) - start > max_bytes:
        end = _character_start(data, start + max_bytes)
        pieces.append(data[start:end])
        start = end
    return [*pieces, data[start:]]


def _character_start(data: bytes, at: int) -> int:
    """`at`, or the few bytes before it where the UTF-8 character begins that `at` is inside of."""
    for start in range(at, max(at - _CHARACTER_BYTES, 0), -1):
        if start == len(data) or data[start] & 0xC0 != 0x80:
            return start
    return at
