"""An answer as it comes, in pieces: what every adapter gathers in the same way, within the same bounds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.llm.base import (
    CallLimits,
    ModelOutputTooLong,
    ModelRequest,
    ModelResponse,
    SizeSink,
    TextSink,
    ToolCall,
    Usage,
)

Finish = Literal["stop", "length", "tool_calls"]

_ENDS: dict[str, Finish] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "done"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_use", "tool_call", "function_call"), "stop"),
}
"""How servers name the end of an answer, in small letters: OpenAI's wire, Anthropic's, Ollama's and their likes."""

BYTES_PER_TOKEN = 3
"""For an estimate where nobody has counted. English has about four; code, other scripts and JSON have fewer."""
MESSAGE_TOKENS = 8
"""What a server adds around each message and each tool."""
MOST_TOKENS = 2**31 - 1
CALL_BYTES = 64
"""What a tool call counts for beside its texts, so that empty ones have an end too."""


def finish_of(reason: str) -> Finish | None:
    """How an answer ended, from the server's word for it; None for a word that does not stand for an end. Servers write
    `abort`, `error` or `timeout` for half an answer, and a new word may mean anything."""
    return _ENDS.get(reason.lower())


def estimated_tokens(text_bytes: int) -> int:
    return -(-text_bytes // BYTES_PER_TOKEN)


def size_of(request: ModelRequest) -> int:
    """What is sent, in bytes."""
    size = sum(len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
    size += sum(
        len((call.name + call.arguments).encode("utf-8", "surrogatepass"))
        for message in request.messages
        for call in message.tool_calls
    )
    size += sum(
        len(json.dumps([tool.name, tool.description, dict(tool.parameters)]).encode()) for tool in request.tools
    )
    return size + (len(json.dumps(dict(request.schema)).encode()) if request.schema else 0)


def estimated_input_tokens(request: ModelRequest) -> int:
    return estimated_tokens(size_of(request)) + MESSAGE_TOKENS * (len(request.messages) + len(request.tools))


def whole_number(value: Any) -> int | None:
    """A count that a server sends; None when it is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, MOST_TOKENS)


@dataclass(slots=True)
class _CallParts:
    id: str
    name: str
    arguments: str


class ModelAnswer:
    """Gathers one answer. Each method that adds to it raises ModelOutputTooLong when the answer is over the limit."""

    def __init__(
        self, request: ModelRequest, limits: CallLimits, on_text: TextSink, on_size: SizeSink | None = None
    ) -> None:
        self._request = request
        self._most = limits.max_output_bytes
        self._on_text = on_text
        self._on_size = on_size
        self._text: list[str] = []
        self._calls: list[_CallParts] = []
        self._bytes = 0
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    @property
    def has_begun(self) -> bool:
        return self._bytes > 0

    def text(self, piece: str) -> None:
        if piece:
            self._count(piece)
            self._text.append(piece)
            self._on_text(piece)

    def thought(self, piece: str) -> None:
        """A piece of the model's thinking, which is counted and left out."""
        self._count(piece)

    def call(self, id: str | None, name: str, arguments: str) -> int:
        """Add a tool call, or its first piece. Returns the number of the call."""
        self._count(name + arguments, CALL_BYTES)
        self._calls.append(_CallParts(id or f"call_{len(self._calls) + 1}", name, arguments))
        return len(self._calls) - 1

    def more_of_call(self, number: int, name: str, arguments: str) -> None:
        self._count(name + arguments)
        self._calls[number].name += name
        self._calls[number].arguments += arguments

    def id_of_call(self, number: int) -> str:
        return self._calls[number].id

    def is_whole_call(self, number: int) -> bool:
        """Whether the call's arguments are a JSON value by now."""
        try:
            json.loads(self._calls[number].arguments)
        except (ValueError, RecursionError):
            return False
        return True

    def usage(self) -> Usage:
        """The usage so far. What the server did not count is estimated."""
        known = self.input_tokens is not None and self.output_tokens is not None
        return Usage(
            estimated_input_tokens(self._request) if self.input_tokens is None else self.input_tokens,
            estimated_tokens(self._bytes) if self.output_tokens is None else self.output_tokens,
            is_estimate=not known,
        )

    def whole(self, finish: Finish) -> ModelResponse:
        calls = tuple(ToolCall(call.id, call.name, call.arguments or "{}") for call in self._calls)
        ended: Finish = "tool_calls" if calls and finish == "stop" else finish
        return ModelResponse("".join(self._text), self.usage(), calls, ended)

    def _count(self, piece: str, extra: int = 0) -> None:
        self._bytes += len(piece.encode("utf-8", "surrogatepass")) + extra
        if self._on_size is not None:
            self._on_size(self._bytes)
        if self._bytes > self._most:
            raise ModelOutputTooLong(
                f"the model's answer was cut off at {self._most} bytes: the server does not keep to the limit of "
                f"{self._request.max_output_tokens} tokens",
                usage=self.usage(),
            )


def vectors_of(value: Any, texts: Sequence[str]) -> list[list[float]] | None:
    """One vector of numbers for each text, all of one length; None when `value` is anything else."""
    if not isinstance(value, list) or len(value) != len(texts):
        return None
    lengths = {len(vector) if isinstance(vector, list) else 0 for vector in value}
    if len(lengths) != 1 or 0 in lengths:
        return None
    if not all(isinstance(number, int | float) for vector in value for number in vector):
        return None
    return [[float(number) for number in vector] for vector in value]


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments that a model gave, for a wire that wants an object. Text that is no object is shown to the model as
    it was."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"arguments": value}
