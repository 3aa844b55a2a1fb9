"""Ollama's own wire: /api/chat, /api/embed and /api/tags, one JSON object for each line.

Its OpenAI-compatible one would do for chat, but knows no `keep_alive`, and neither how long a model loads. No client
library: the wire is three requests.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx2

from worker.llm.answer import Finish, ModelAnswer, arguments_of, finish_of, vectors_of, whole_number
from worker.llm.base import (
    CallLimits,
    Message,
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


class OllamaServer(ModelServer):
    def __init__(self, spec: ServerSpec, limits: CallLimits) -> None:
        self.name = spec.name
        self._limits = limits
        self._url = spec.url
        self._keep_alive = spec.keep_alive
        self._wire = Wire(spec)
        # Ollama itself asks for no key; a proxy before it may.
        self._client = http_client(limits, bearer(key_of(spec)), spec.certificate)

    async def complete(
        self,
        model: str,
        request: ModelRequest,
        limits: CallLimits,
        on_text: TextSink,
        on_size: SizeSink | None = None,
    ) -> ModelResponse:
        answer = ModelAnswer(request, limits, on_text, on_size)
        finish: Finish | None = None
        async with self._wire.call(limits, answer):
            sent = self._request("POST", "/api/chat", limits, self._chat(model, request))
            response = await self._client.send(sent, stream=True)
            try:
                if not response.is_success:
                    raise await self._refusal(response)
                async for line in _lines(response):
                    finish = self._take(json.loads(line), answer) or finish
            finally:
                await response.aclose()
            if finish is None:
                raise self._wire.broken_off(answer)
            return answer.whole(finish)

    async def embed(self, model: str, texts: Sequence[str], limits: CallLimits) -> tuple[list[list[float]], Usage]:
        async with self._wire.call(limits):
            body: dict[str, Any] = {"model": model, "input": list(texts)}
            if self._keep_alive is not None:
                body["keep_alive"] = _duration(self._keep_alive)
            found = await self._json("POST", "/api/embed", limits, body)
            vectors = vectors_of(found.get("embeddings"), texts)
            if vectors is None:
                raise self._wire.garbage("embeddings", None)
            return vectors, Usage(whole_number(found.get("prompt_eval_count")) or 0, 0)

    async def models(self) -> list[str]:
        async with self._wire.call(self._limits):
            found = await self._json("GET", "/api/tags", self._limits)
            return sorted(str(model["name"]) for model in found["models"])

    async def close(self) -> None:
        await self._client.aclose()

    def _chat(self, model: str, request: ModelRequest) -> dict[str, Any]:
        options: dict[str, Any] = {"num_predict": request.max_output_tokens}
        if request.temperature is not None:
            options["temperature"] = request.temperature
        if request.seed is not None:
            options["seed"] = request.seed
        body: dict[str, Any] = {
            "model": model,
            "messages": _messages(request.messages),
            "stream": True,
            "options": options,
        }
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if request.schema is not None:
            body["format"] = dict(request.schema)
        if self._keep_alive is not None:
            body["keep_alive"] = _duration(self._keep_alive)
        return body

    def _take(self, piece: Any, answer: ModelAnswer) -> Finish | None:
        """Put a line into the answer. The last line says how it ended."""
        if not isinstance(piece, dict):
            raise self._wire.garbage("a line that is no object", answer)
        if "error" in piece:
            raise self._wire.failed_in_answer(json.dumps(piece), answer)
        message = piece.get("message")
        if isinstance(message, dict):
            answer.thought(str(message.get("thinking") or ""))
            for call in message.get("tool_calls") or ():
                function = call["function"]
                answer.call(None, str(function["name"]), json.dumps(function.get("arguments") or {}))
            answer.text(str(message.get("content") or ""))
        if not piece.get("done"):
            return None
        # What is in its cache the server may leave uncounted: then it is estimated.
        answer.input_tokens = whole_number(piece.get("prompt_eval_count"))
        answer.output_tokens = whole_number(piece.get("eval_count"))
        reason = str(piece.get("done_reason") or "stop")
        finish = finish_of(reason)
        if finish is None:
            raise self._wire.ended_early(reason, answer)
        return finish

    async def _json(self, method: str, path: str, limits: CallLimits, body: Any = None) -> Mapping[str, Any]:
        response = await self._client.send(self._request(method, path, limits, body), stream=True)
        try:
            if not response.is_success:
                raise await self._refusal(response)
            found = json.loads(await response.aread())
        finally:
            await response.aclose()
        if not isinstance(found, dict):
            raise self._wire.garbage("no object", None)
        return found

    def _request(self, method: str, path: str, limits: CallLimits, body: Any = None) -> httpx2.Request:
        return self._client.build_request(method, f"{self._url}{path}", json=body, timeout=timeout_of(limits))

    async def _refusal(self, response: httpx2.Response) -> Exception:
        body = (await response.aread()).decode("utf-8", "replace")
        return self._wire.refusal(response.status_code, response.headers, body)


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The lines, which end at line feeds alone: a text may hold other line breaks, such as U+2028."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def open_server(spec: ServerSpec, limits: CallLimits) -> ModelServer:
    return OllamaServer(spec, limits)


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    sent: list[dict[str, Any]] = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            names |= {call.id: call.name for call in message.tool_calls}
            one["tool_calls"] = [
                {"function": {"name": call.name, "arguments": arguments_of(call.arguments)}}
                for call in message.tool_calls
            ]
        if message.role == "tool":
            # Calls have no ids here: results stand in their order, and name their tool.
            one["tool_name"] = names.get(message.tool_call_id or "", "")
        sent.append(one)
    return sent


def _tool(tool: ToolSchema) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _duration(keep_alive: str) -> str | int:
    """A plain number means seconds, and must not be a string; so `-1` keeps a model for ever."""
    try:
        return int(keep_alive)
    except ValueError:
        return keep_alive
