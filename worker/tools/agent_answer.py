"""The answer of a deployed agent, read as it comes: lines for the watchers, and one result.

What an answer may be follows from its Content-Type:

    application/json        the body is the result
    application/x-ndjson    a JSON value a line: an event
    text/event-stream       an event is the `data` of what ends with an empty line
    text/… , or none        lines for the watchers; there is no result

An event is `{"log": TEXT}`, a line for the watchers; `{"result": VALUE}`, the result, of which the last counts; or
`{"error": TEXT}`, with `"retryable": true` where the same call may succeed later, which ends it. Any other is shown as
it came. An answer of events without a result or an error has broken off, for a connection that is cut looks like its
end. All of it is hostile: nothing here grows with what comes beyond the limits.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from backplane.domain.sizes import MIB, readable_size, shortened
from backplane.settings.fixed import HANDLER_VALUE_MAX_BYTES
from worker.llm.untrusted_json import NotJson, parse_value, storable

ANSWER_MAX_BYTES = 64 * MIB
ANSWER_MAX_LINES = 200_000
LINE_MAX_BYTES = 512 * 1024
"""Of one event. A line of text may have any length: what takes it cuts it."""
WORDS_CHARS = 500


class AnswerWrong(Exception):
    """The answer is not what an agent may give. Asked again, it would hardly be another one."""


class AnswerBrokenOff(Exception):
    """The end is missing."""


class AgentFailed(Exception):
    """The agent says that it failed. `retryable`: it says that the same call may succeed later."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class AgentAnswer(ABC):
    """`feed` the pieces, then `end` it once. Both give what watchers see, in bytes of UTF-8, and raise AnswerWrong and
    AgentFailed; `end` raises AnswerBrokenOff too."""

    result: Any = None
    has_result = False
    max_bytes: ClassVar[int] = ANSWER_MAX_BYTES

    def __init__(self) -> None:
        self._bytes, self._lines = 0, 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        self._bytes += len(piece)
        self._lines += piece.count(b"\n")
        if self._bytes > self.max_bytes:
            raise AnswerWrong(f"its answer is larger than {readable_size(self.max_bytes)}; large data go into files")
        if self._lines > ANSWER_MAX_LINES:
            raise AnswerWrong(f"its answer has more than {ANSWER_MAX_LINES:,} lines")
        return self._take(piece)

    @abstractmethod
    def _take(self, piece: bytes) -> Iterator[bytes]: ...

    @abstractmethod
    def end(self) -> Iterator[bytes]: ...


class TextAnswer(AgentAnswer):
    def _take(self, piece: bytes) -> Iterator[bytes]:
        yield piece

    def end(self) -> Iterator[bytes]:
        return iter(())


class JsonAnswer(AgentAnswer):
    max_bytes = HANDLER_VALUE_MAX_BYTES

    def __init__(self) -> None:
        super().__init__()
        self._body = bytearray()

    def _take(self, piece: bytes) -> Iterator[bytes]:
        self._body += piece
        return iter(())

    def end(self) -> Iterator[bytes]:
        self.result, self.has_result = _parsed(bytes(self._body), "its answer"), True
        return iter(())


class NdjsonAnswer(AgentAnswer):
    def __init__(self) -> None:
        super().__init__()
        self._rest = b""

    def _take(self, piece: bytes) -> Iterator[bytes]:
        *lines, rest = piece.split(b"\n")
        for line in lines:
            _check_length(self._rest, line)
            line, self._rest = self._rest + line, b""
            yield from self._line(line.removesuffix(b"\r"))
        _check_length(self._rest, rest)
        self._rest += rest

    def end(self) -> Iterator[bytes]:
        if self._rest.strip():
            try:
                yield from self._line(self._rest)
            except AnswerWrong:
                raise AnswerBrokenOff("its answer breaks off in the middle of a line") from None
        if not self.has_result:
            raise AnswerBrokenOff('its answer ended without {"result": …} or {"error": …}')

    def _line(self, line: bytes) -> Iterator[bytes]:
        if line.strip():
            yield from self._event(_parsed(line, f"line {self._lines} of its answer or one before it"), line)

    def _event(self, value: Any, as_it_came: bytes) -> Iterator[bytes]:
        match value:
            case {"error": error}:
                raise AgentFailed(words_of(error), retryable=value.get("retryable") is True)
            case {"result": result}:
                size = len(json.dumps(result))
                if size > HANDLER_VALUE_MAX_BYTES:
                    most = readable_size(HANDLER_VALUE_MAX_BYTES)
                    raise AnswerWrong(f"its result has {readable_size(size)} of JSON; at most {most} are kept")
                self.result, self.has_result = result, True
            case {"log": str(text)}:
                yield f"{text}\n".encode()
            case _:
                yield as_it_came + b"\n"


class EventStreamAnswer(NdjsonAnswer):
    """Server-sent events. `data` that is no JSON is a line for the watchers."""

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []
        self._data_bytes = 0

    def end(self) -> Iterator[bytes]:
        # An event that no empty line ends counts too: agents forget it.
        yield from self._line(self._rest)
        self._rest = b""
        yield from self._line(b"")
        yield from super().end()

    def _line(self, line: bytes) -> Iterator[bytes]:
        field, _, value = line.partition(b":")
        if field == b"data":
            value = value.removeprefix(b" ")
            self._data_bytes += len(value) + 1
            if self._data_bytes > LINE_MAX_BYTES:
                raise AnswerWrong(f"one event has more than {readable_size(LINE_MAX_BYTES)}")
            self._data.append(value)
        elif not line and self._data:
            data = b"\n".join(self._data)
            self._data, self._data_bytes = [], 0
            try:
                event = _parsed(data, "an event")
            except AnswerWrong:
                yield data + b"\n"
            else:
                yield from self._event(event, data)


def answer_of(content_type: str) -> AgentAnswer:
    """What reads an answer of this Content-Type. Raises AnswerWrong."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return JsonAnswer()
    if kind in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        return NdjsonAnswer()
    if kind == "text/event-stream":
        return EventStreamAnswer()
    if not kind or kind.startswith("text/"):
        return TextAnswer()
    raise AnswerWrong(
        f"its answer is {shortened(printable(kind), 100)}; an agent answers with application/json, "
        "application/x-ndjson, text/event-stream or text/plain"
    )


def words_of(error: Any) -> str:
    """What an agent says about its failure, in one line: a text, or the `message` or `detail` of an object."""
    if isinstance(error, dict):
        found = [error[name] for name in ("message", "error", "detail") if isinstance(error.get(name), str)]
        error = found[0] if found else json.dumps(error)
    text = error if isinstance(error, str) else json.dumps(error)
    return shortened(printable(" ".join(text.split())), WORDS_CHARS) or "without a reason"


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in storable(text))


def _check_length(rest: bytes, line: bytes) -> None:
    if len(rest) + len(line) > LINE_MAX_BYTES:
        raise AnswerWrong(f"a line of its answer is longer than {readable_size(LINE_MAX_BYTES)}")


def _parsed(text: bytes, what: str) -> Any:
    try:
        return parse_value(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise AnswerWrong(f"{what} is not UTF-8") from None
    except NotJson as error:
        raise AnswerWrong(f"{what} is no JSON: {error}") from None
