"""A call of a model as it is written down: the request so that a person can read what was asked, the answer so that the
run can go on from it. Both are redacted before they come here.

Of a long prompt the middles of its messages are left out. An answer is kept whole: it is bounded when it is taken
(`fixed.MODEL_MAX_OUTPUT_BYTES`), and a run that resumed from half of it would go another way. A request is known by the
digest of all of it, so a cut record still shows whether the same was asked.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from worker.llm.base import Message, ModelRequest, ModelResponse, ToolCall, Usage

SHOWN_CHARS = 80
"""How many characters of a difference an error shows."""


def redacted(request: ModelRequest, redact: Callable[[str], str]) -> ModelRequest:
    """The request without secrets. The model gets the request as it is recorded."""
    return replace(request, messages=tuple(_redacted_message(message, redact) for message in request.messages))


def redacted_answer(response: ModelResponse, redact: Callable[[str], str]) -> ModelResponse:
    return replace(response, text=redact(response.text), tool_calls=_redacted_calls(response.tool_calls, redact))


def digest_of(request: ModelRequest) -> str:
    """A digest of the messages, the tools and the schema. It does not depend on the model and on the length that its
    answer may have."""
    asked = {
        "messages": [_message(message) for message in request.messages],
        "tools": [[tool.name, tool.description, tool.parameters] for tool in request.tools],
        "schema": request.schema,
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def record_of(request: ModelRequest, max_bytes: int) -> dict[str, Any]:
    """{"messages", "tools", "schema"?, "max_output_tokens", "temperature"?, "seed"?}; tools by name. The texts of the
    messages have about `max_bytes` together."""
    share = max_bytes // max(len(request.messages), 1)
    messages = [_message(message) for message in request.messages]
    room = max_bytes - sum(min(len(message["content"].encode("utf-8", "surrogatepass")), share) for message in messages)
    for message in reversed(messages):
        # The room that short messages leave over goes to the newest one.
        size = len(message["content"].encode("utf-8", "surrogatepass"))
        extra = min(max(size - share, 0), room)
        room -= extra
        message["content"] = _cut(message["content"], min(size, share) + extra)
    record: dict[str, Any] = {
        "messages": messages,
        "tools": [tool.name for tool in request.tools],
        "max_output_tokens": request.max_output_tokens,
    }
    if request.schema is not None:
        record["schema"] = dict(request.schema)
    if request.temperature is not None:
        record["temperature"] = request.temperature
    if request.seed is not None:
        record["seed"] = request.seed
    return record


def record_of_answer(response: ModelResponse) -> dict[str, Any]:
    return {
        "text": response.text,
        "tool_calls": [_call(call) for call in response.tool_calls],
        "finish": response.finish,
        "usage": {
            "input_tokens": response.usage.input_tokens,
            "output_tokens": response.usage.output_tokens,
            "is_estimate": response.usage.is_estimate,
        },
        "model": response.model,
        "micro_usd": response.micro_usd,
        "seconds": response.seconds,
    }


def answer_of(record: Mapping[str, Any]) -> ModelResponse:
    calls = tuple(ToolCall(call["id"], call["name"], call["arguments"]) for call in record["tool_calls"])
    return ModelResponse(
        text=record["text"],
        usage=Usage(**record["usage"]),
        tool_calls=calls,
        finish=record["finish"],
        model=record["model"],
        micro_usd=record["micro_usd"],
        seconds=record["seconds"],
    )


def first_difference(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first difference between two records whose digests differ, in words."""
    before, now = recorded["messages"], asked["messages"]
    for number, (one, other) in enumerate(zip(before, now, strict=False), start=1):
        if one != other:
            return f"message {number} ({other['role']}) {_difference(_text_of_message(one), _text_of_message(other))}"
    if len(before) != len(now):
        return f"there were {len(before)} messages, and now there are {len(now)}"
    if recorded["tools"] != asked["tools"]:
        there, here = ", ".join(recorded["tools"]) or "none", ", ".join(asked["tools"]) or "none"
        return f"the tools were {there}, and now they are {here}"
    if recorded.get("schema") != asked.get("schema"):
        return "the answer's JSON schema is another"
    return "the difference is in a tool's schema, or in a part of a long message that was not kept"


def _text_of_message(message: Mapping[str, Any]) -> str:
    parts = [message["content"], *(f"{call['name']}({call['arguments']})" for call in message.get("tool_calls", ()))]
    return "\n".join(part for part in parts if part) + (message.get("tool_call_id") or "")


def _difference(before: str, now: str) -> str:
    at = next((at for at, (one, other) in enumerate(zip(before, now, strict=False)) if one != other), None)
    if at is None:
        at = min(len(before), len(now))
    start = max(at - SHOWN_CHARS // 4, 0)
    was, is_now = before[start : start + SHOWN_CHARS], now[start : start + SHOWN_CHARS]
    return f"was …{was!r}… from character {start + 1}, and now is …{is_now!r}…"


def _message(message: Message) -> dict[str, Any]:
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        record["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        record["tool_call_id"] = message.tool_call_id
    return record


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _redacted_message(message: Message, redact: Callable[[str], str]) -> Message:
    return replace(message, content=redact(message.content), tool_calls=_redacted_calls(message.tool_calls, redact))


def _redacted_calls(calls: Sequence[ToolCall], redact: Callable[[str], str]) -> tuple[ToolCall, ...]:
    return tuple(replace(call, arguments=redact(call.arguments)) for call in calls)


def _cut(text: str, max_bytes: int) -> str:
    """The text, or the beginning and the end of a longer one."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= max_bytes:
        return text
    half = max_bytes // 2
    head, tail = data[:half].decode("utf-8", "ignore"), data[len(data) - half :].decode("utf-8", "ignore")
    return f"{head}\n… {len(data) - 2 * half} bytes were not kept …\n{tail if half else ''}"


def _plain(value: Any) -> Any:
    """Makes mappings and tuples into what JSON knows."""
    return dict(value) if isinstance(value, Mapping) else list(value)
