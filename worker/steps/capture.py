"""From the bytes that a step writes to the lines that watchers see and the text that its result keeps.

A step may write without end. So there are limits: lines are emitted as long as `may_emit` allows the next one (the
run's rate) and until so many bytes are reached; from there on output is only counted. The number of dropped lines is
reported: now and then while lines are dropped for the rate, and once, with the total, in the end. The result keeps the
beginning and the end. The memory that is used never depends on how much was written. Bytes that are not UTF-8 become
U+FFFD; control characters stay.
"""

from collections.abc import Callable

from backplane.domain.sizes import readable_size

LINE_COST = 64
"""Bytes that a line counts for on top of its own: events have a frame, and a million empty lines are not free."""

NOTICE_SECONDS = 1.0
"""The number of dropped lines is reported at most once in so many seconds."""

_CHARACTER_BYTES = 4


class OutputCapture:
    """`write` the chunks in order, then `finish` once. `emit` is called with each line without its line break, and
    `warn` with a sentence about dropped lines and their number so far. All limits are in bytes of output; `max_bytes`
    and `result_max_bytes` are for all of it, `line_max_bytes` for each line."""

    def __init__(
        self,
        emit: Callable[[str], None],
        warn: Callable[[str, int], None],
        *,
        may_emit: Callable[[], bool],
        clock: Callable[[], float],
        max_bytes: int,
        line_max_bytes: int,
        result_max_bytes: int,
    ) -> None:
        self._emit = emit
        self._warn = warn
        self._may_emit = may_emit
        self._clock = clock
        self._max_bytes = max_bytes
        self._line_max_bytes = line_max_bytes
        self._result_max_bytes = result_max_bytes

        self._pending = b""
        self._line_goes_on = False
        self._line_is_whole = True
        self._full = False
        self._too_fast = False
        self._next_notice = 0.0
        self._cost = 0
        self._emitted_bytes = 0
        self._emitted_lines = 0
        self.dropped_lines = 0
        """The number of lines that were not emitted whole. Until `finish`, only lines over the rate are counted."""

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
        unfinished = self._total_bytes > 0 and not self._tail.endswith(b"\n")
        self.dropped_lines = self._line_breaks + unfinished - self._emitted_lines
        if self._full or self._too_fast:
            size = readable_size(self._total_bytes - self._emitted_bytes)
            limits = [
                *(["STEP_OUTPUT_MAX_BYTES"] if self._full else []),
                *(["RUN_LOG_LINES_PER_SECOND"] if self._too_fast else []),
            ]
            self._warn(
                f"… {_lines(self.dropped_lines)} ({size}) not shown; the limit is {' and '.join(limits)}",
                self.dropped_lines,
            )
        return self._text()

    @property
    def is_cut(self) -> bool:
        """Whether the text for the result is not the whole."""
        return self._total_bytes > self._result_max_bytes

    def _take_line(self, line: bytes, line_break: bytes) -> None:
        text = line.removesuffix(b"\r")
        if text or not self._line_goes_on:
            for piece in _cut(text, self._line_max_bytes):
                self._take_piece(piece)
        self._line_goes_on = False
        if self._line_is_whole:
            self._emitted_bytes += len(line) - len(text) + len(line_break)
            self._emitted_lines += 1
        elif not self._full:
            self.dropped_lines += 1
            self._line_is_whole = True
            self._notice()

    def _take_piece(self, piece: bytes) -> None:
        if not self._full and not self._may_emit():
            self._too_fast = True
            self._line_is_whole = False
            return
        self._cost += len(piece) + LINE_COST
        self._full = self._full or self._cost > self._max_bytes
        if self._full:
            self._line_is_whole = False
        else:
            self._emit(piece.decode("utf-8", "replace"))
            self._emitted_bytes += len(piece)

    def _notice(self) -> None:
        now = self._clock()
        if now >= self._next_notice:
            self._next_notice = now + NOTICE_SECONDS
            line = f"… {_lines(self.dropped_lines)} not shown so far; the limit is RUN_LOG_LINES_PER_SECOND"
            self._warn(line, self.dropped_lines)

    def _text(self) -> str:
        if self._total_bytes <= self._result_max_bytes:
            return self._head.decode("utf-8", "replace")
        half = self._result_max_bytes // 2
        head = self._head[: _character_start(self._head, half)]
        tail = self._tail[_character_start(self._tail, len(self._tail) - half) :] if half else b""
        left_out = readable_size(self._total_bytes - len(head) - len(tail))
        note = f"\n… {left_out} left out here; the limit is STEP_RESULT_MAX_BYTES …\n"
        return head.decode("utf-8", "replace") + note + tail.decode("utf-8", "replace")


def _lines(count: int) -> str:
    return f"{count:,} {'line' if count == 1 else 'lines'}"


def _cut(data: bytes, max_bytes: int) -> list[bytes]:
    """`data` in pieces of at most `max_bytes`, none of which begins inside a character. There is one piece at least,
    which may be empty."""
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
