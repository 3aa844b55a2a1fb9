"""Anthropic's messages, by its library, whose retries are off.

An answer with a JSON schema is asked for as the call of a tool that takes it, which is what the wire has for that: its
arguments are the answer's text. The wire has neither `temperature` nor `seed`, so these are left out.
"""

import json
from collections.abc import Sequence
from typing import Any

import anthropic

from worker.llm.answer import ModelAnswer, arguments_of, finish_of, whole_number
from worker.llm.base import (
    CallLimits,
    Message,
    ModelRefused,
    ModelRequest,
    ModelResponse,
    ModelServer,
    SizeSink,
    TextSink,
    Usage,
)
from worker.llm.catalogue import ServerSpec
from worker.llm.wire import Wire, http_client, key_of, timeout_of

ANSWER_TOOL = "answer"
MOST_BLOCKS = 1000
_INPUT_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class AnthropicServer(ModelServer):
    def __init__(self, spec: ServerSpec, limits: CallLimits) -> None:
        self.name = spec.name
        self._limits = limits
        self._wire = Wire(spec)
        key = key_of(spec)
        self._client = anthropic.AsyncAnthropic(
            api_key="in the transport",
            base_url=spec.url.removesuffix("/v1"),
            max_retries=0,
            http_client=http_client(limits, {"x-api-key": key} if key else {}),
            open_telemetry=False,
        )

    async def complete(
        self,
        model: str,
        request: ModelRequest,
        limits: CallLimits,
        on_text: TextSink,
        on_size: SizeSink | None = None,
    ) -> ModelResponse:
        answer = ModelAnswer(request, limits, on_text, on_size)
        async with self._wire.call(limits, answer):
            try:
                stream = await self._client.messages.create(
                    **_body(model, request), stream=True, timeout=timeout_of(limits)
                )
                async with stream:
                    if await self._wire.not_streamed(stream.response, answer) is not None:
                        raise self._wire.garbage("a whole message in place of events", answer)
                    return await self._gathered(stream, answer)
            except anthropic.APIStatusError as error:
                if error.response.is_success:
                    raise self._wire.failed_in_answer(json.dumps(error.body, default=str), answer) from None
                raise self._wire.refusal(error.status_code, error.response.headers, error.response.text) from None

    async def embed(self, model: str, texts: Sequence[str], limits: CallLimits) -> tuple[list[list[float]], Usage]:
        raise ModelRefused(
            f"model server {self.name} has no embeddings: Anthropic's wire has none; set EMBEDDING_MODEL to another"
        )

    async def models(self) -> list[str]:
        async with self._wire.call(self._limits):
            try:
                found = await self._client.models.list(limit=1000, timeout=timeout_of(self._limits))
            except anthropic.APIStatusError as error:
                raise self._wire.refusal(error.status_code, error.response.headers, error.response.text) from None
            return sorted(str(model.id) for model in found.data)

    async def close(self) -> None:
        await self._client.close()

    async def _gathered(self, stream: Any, answer: ModelAnswer) -> ModelResponse:
        blocks: dict[int, _AnswerBlock] = {}
        reason: str | None = None
        ended = False
        async for event in stream:
            match event.type:
                case "message_start":
                    counts = [whole_number(getattr(event.message.usage, name, None)) for name in _INPUT_COUNTS]
                    answer.input_tokens = None if counts[0] is None else sum(count or 0 for count in counts)
                case "content_block_start":
                    if len(blocks) > MOST_BLOCKS:
                        raise self._wire.garbage(f"more than {MOST_BLOCKS} parts", answer)
                    blocks[event.index] = _AnswerBlock(event.content_block, answer)
                case "content_block_delta":
                    blocks[event.index].take(event.delta)
                case "message_delta":
                    reason = event.delta.stop_reason or reason
                    if (count := whole_number(getattr(event.usage, "output_tokens", None))) is not None:
                        answer.output_tokens = count
                    # Some servers say only at the end what they read.
                    if count := whole_number(getattr(event.usage, "input_tokens", None)):
                        answer.input_tokens = max(answer.input_tokens or 0, count)
                case "message_stop":
                    ended = True
        if not ended or reason is None:
            raise self._wire.broken_off(answer)
        if reason == "refusal":
            raise ModelRefused(f"model server {self.name} withheld the answer: the model refused it")
        finish = finish_of(reason)
        if finish is None:
            raise self._wire.ended_early(reason, answer)
        return answer.whole(finish)


class _AnswerBlock:
    """One part of an answer: text, a tool's call, or the answer that a schema asked for."""

    def __init__(self, block: Any, answer: ModelAnswer) -> None:
        self._answer = answer
        self._call: int | None = None
        if block.type == "text":
            answer.text(block.text)
        elif block.type == "tool_use" and block.name != ANSWER_TOOL:
            # What it begins with is an empty object that the pieces after it fill.
            given = json.dumps(block.input) if block.input else ""
            self._call = answer.call(block.id, block.name, given)

    def take(self, delta: Any) -> None:
        if delta.type == "text_delta":
            self._answer.text(delta.text)
        elif delta.type == "input_json_delta":
            if self._call is None:
                self._answer.text(delta.partial_json)
            else:
                self._answer.more_of_call(self._call, "", delta.partial_json)
        elif delta.type == "thinking_delta":
            self._answer.thought(delta.thinking)


def open_server(spec: ServerSpec, limits: CallLimits) -> ModelServer:
    return AnthropicServer(spec, limits)


def _body(model: str, request: ModelRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_output_tokens,
        "messages": _messages(request.messages),
    }
    system = "\n\n".join(message.content for message in request.messages if message.role == "system")
    if system:
        body["system"] = system
    tools = [
        {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}
        for tool in request.tools
    ]
    if request.schema is not None:
        # With other tools beside it the model may call one of them first.
        body["tool_choice"] = {"type": "any"} if tools else {"type": "tool", "name": ANSWER_TOOL}
        tools.append({"name": ANSWER_TOOL, "description": "Gives the answer.", "input_schema": dict(request.schema)})
    if tools:
        body["tools"] = tools
    return body


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Roles must take turns, and results of tools are the user's: what is of one role is put together."""
    sent: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if not sent or sent[-1]["role"] != role:
            sent.append({"role": role, "content": []})
        sent[-1]["content"] += _blocks(message)
    return [message for message in sent if message["content"]]


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": message.content}]
    # An empty text is refused.
    blocks: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_of(call.arguments)}
        for call in message.tool_calls
    ]
    return blocks
