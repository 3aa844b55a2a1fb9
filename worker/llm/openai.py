"""OpenAI's chat completions, which vLLM, llama.cpp, TGI and most hosted servers speak too, each with its liberties.

The `openai` library does the requests and the stream; its retries are off, as they are the gateway's. It builds its
objects without looking whether they are what they should be, so each piece is checked here.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import BaseModel, ConfigDict

from worker.llm.answer import ModelAnswer, estimated_tokens, finish_of, vectors_of, whole_number
from worker.llm.base import (
    CallLimits,
    Message,
    ModelRefused,
    ModelRequest,
    ModelResponse,
    ModelServer,
    SizeSink,
    TextSink,
    ToolSchema,
    Usage,
)
from worker.llm.catalogue import ServerSpec
from worker.llm.wire import Wire, bearer, http_client, key_of, timeout_of

_MAKERS_HOSTS = (".openai.com", ".openai.azure.com")


class _Piece(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Function(_Piece):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _ToolCallPiece(_Piece):
    index: int | None = None
    id: str | None = None
    function: _Function = _Function()


class _Delta(_Piece):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCallPiece] | None = None


class _Choice(_Piece):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _UsagePiece(_Piece):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(_Piece):
    choices: list[_Choice] | None = None
    usage: _UsagePiece | None = None


class OpenAIServer(ModelServer):
    def __init__(self, spec: ServerSpec, limits: CallLimits) -> None:
        self.name = spec.name
        self._limits = limits
        self._wire = Wire(spec)
        self._most_tokens = most_tokens_field(spec.url)
        self._client = openai.AsyncOpenAI(
            # The library wants one, also where the server does not; what is sent is the transport's.
            api_key="in the transport",
            base_url=base_url_of(spec.url),
            max_retries=0,
            http_client=http_client(limits, bearer(key_of(spec)), spec.certificate),
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
                stream = await self._client.chat.completions.create(
                    **self._body(model, request), stream=True, timeout=timeout_of(limits)
                )
                async with stream:
                    whole = await self._wire.not_streamed(stream.response, answer)
                    names = frozenset(tool.name for tool in request.tools)
                    return await self._gathered(stream if whole is None else _once(whole), answer, names)
            except openai.APIStatusError as error:
                raise self._wire.refusal(error.status_code, error.response.headers, error.response.text) from None
            except openai.APIConnectionError:
                raise
            except openai.APIError as error:
                # In the middle of the stream, where the library has no status.
                words = json.dumps({"error": error.body or error.message}, default=str)
                raise self._wire.failed_in_answer(words, answer) from None

    async def embed(self, model: str, texts: Sequence[str], limits: CallLimits) -> tuple[list[list[float]], Usage]:
        async with self._wire.call(limits):
            try:
                found = await self._client.embeddings.create(
                    model=model, input=list(texts), encoding_format="float", timeout=timeout_of(limits)
                )
            except openai.APIStatusError as error:
                raise self._wire.refusal(error.status_code, error.response.headers, error.response.text) from None
            data = sorted(found.data, key=lambda item: item.index)
            vectors = vectors_of([item.embedding for item in data], texts)
            if vectors is None:
                raise self._wire.garbage("embeddings", None)
            counted = whole_number(getattr(found.usage, "prompt_tokens", None))
            if counted is None:
                size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
                return vectors, Usage(estimated_tokens(size), 0, is_estimate=True)
            return vectors, Usage(counted, 0)

    async def models(self) -> list[str]:
        async with self._wire.call(self._limits):
            try:
                found = await self._client.models.list(timeout=timeout_of(self._limits))
            except openai.APIStatusError as error:
                raise self._wire.refusal(error.status_code, error.response.headers, error.response.text) from None
            return sorted(str(model.id) for model in found.data)

    async def close(self) -> None:
        await self._client.close()

    def _body(self, model: str, request: ModelRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "messages": [_message(message) for message in request.messages],
            self._most_tokens: request.max_output_tokens,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.schema is not None:
            schema = {"name": "answer", "schema": dict(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.seed is not None:
            body["seed"] = request.seed
        return body

    async def _gathered(self, pieces: AsyncIterable[Any], answer: ModelAnswer, names: frozenset[str]) -> ModelResponse:
        """`names`: those of the tools that the model was offered."""
        reason: str | None = None
        calls: dict[int, int] = {}
        async for piece in pieces:
            chunk = _Chunk.model_validate(piece if isinstance(piece, dict) else piece.model_dump(warnings=False))
            if chunk.usage:
                answer.input_tokens = whole_number(chunk.usage.prompt_tokens)
                answer.output_tokens = whole_number(chunk.usage.completion_tokens)
            for choice in (chunk.choices or ())[:1]:
                reason = choice.finish_reason or reason
                if given := choice.delta or choice.message:
                    _take(given, answer, calls, names)
        if reason is None:
            raise self._wire.broken_off(answer)
        if reason == "content_filter":
            raise ModelRefused(f"model server {self.name} withheld the answer: its content filter took it for harmful")
        finish = finish_of(reason)
        if finish is None:
            raise self._wire.ended_early(reason, answer)
        return answer.whole(finish)


async def _once(whole: Any) -> AsyncIterator[Any]:
    yield whole


def open_server(spec: ServerSpec, limits: CallLimits) -> ModelServer:
    return OpenAIServer(spec, limits)


def base_url_of(url: str) -> str:
    """The URL with a version at its end. Most people write it without one for vLLM and Ollama's clients, and with one
    for OpenAI."""
    last = urlsplit(url).path.rstrip("/").rpartition("/")[2]
    has_version = last[:1] == "v" and last[1:2].isdigit()
    return url if has_version else f"{url.rstrip('/')}/v1"


def most_tokens_field(url: str) -> str:
    """The name of the field that bounds an answer. OpenAI refuses `max_tokens` for newer models; other servers know
    nothing else."""
    host = f".{(urlsplit(url).hostname or '').lower()}"
    return "max_completion_tokens" if host.endswith(_MAKERS_HOSTS) else "max_tokens"


def _take(delta: _Delta, answer: ModelAnswer, calls: dict[int, int], names: frozenset[str]) -> None:
    """Put a piece into the answer. `calls`: for each index on the wire, the number of the call in the answer."""
    answer.thought(delta.reasoning_content or delta.reasoning or "")
    answer.text(delta.content or "")
    answer.text(delta.refusal or "")
    for position, call in enumerate(delta.tool_calls or ()):
        # Some servers send a call whole, and leave out its index or give every one the same.
        index = position if call.index is None else call.index
        name, given = call.function.name or "", call.function.arguments
        arguments = json.dumps(given) if isinstance(given, dict) else given or ""
        known = calls.get(index)
        if known is None or _is_another(call, known, answer, names):
            calls[index] = answer.call(call.id, name, arguments)
        else:
            # Some repeat the name with each piece.
            answer.more_of_call(known, "" if call.id or name in names else name, arguments)


def _is_another(call: _ToolCallPiece, known: int, answer: ModelAnswer, names: frozenset[str]) -> bool:
    """Whether a piece under the index of a call begins another one: with an id of its own, or, where the server gives
    none, with the name of a tool when the arguments of the call before are whole."""
    if not call.function.name:
        return False
    if call.id:
        return call.id != answer.id_of_call(known)
    return call.function.name in names and answer.is_whole_call(known)


def _message(message: Message) -> dict[str, Any]:
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        sent["tool_call_id"] = message.tool_call_id or ""
    return sent


def _tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}
