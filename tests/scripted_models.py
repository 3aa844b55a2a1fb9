"""A model server that answers what a test says, over real sockets: what a real one does only when it is broken.

It speaks the three protocols as their makers document them. `script` takes replies, one for each request; the last one
stays.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.llm.catalogue import Kind

Ending = Literal["whole", "cut", "hang", "endless"]

REASONS: dict[Kind, dict[str, str]] = {
    "ollama": {"stop": "stop", "length": "length"},
    "openai": {"stop": "stop", "length": "length", "tool_calls": "tool_calls"},
    "anthropic": {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"},
}
TYPES: dict[Kind, str] = {
    "ollama": "application/x-ndjson",
    "openai": "text/event-stream",
    "anthropic": "text/event-stream",
}


@dataclass(frozen=True)
class Reply:
    """`pieces` go out one by one. After them: the end; the connection cut off; nothing for ever; or the last one again
    and again. `status` 0: not even that."""

    pieces: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    ending: Ending = "whole"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class ScriptedModels:
    """`asked`: the requests so far. `left`: how many clients closed the connection before the reply was over.
    `most_at_once`: the most requests that were answered at once."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.left = 0
        self.running_calls = 0
        self.most_at_once = 0
        self.url = ""
        self._replies: list[Reply] = []
        self._answer: Callable[[Asked], Reply] | None = None
        self._serving = set[asyncio.Task[None]]()

    async def close(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def script(self, *replies: Reply) -> None:
        self._replies = list(replies)

    def answer(self, answer: Callable[[Asked], Reply]) -> None:
        """Let this say what is replied."""
        self._answer = answer

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (asked := await _request(reader)) is not None:
                self.asked.append(asked)
                self.running_calls += 1
                self.most_at_once = max(self.most_at_once, self.running_calls)
                try:
                    if not await self._reply(asked, reader, writer):
                        return
                finally:
                    self.running_calls -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _reply(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection can be used again."""
        if self._answer is not None:
            reply = self._answer(asked)
        else:
            reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        leaving = asyncio.ensure_future(reader.read(1))
        sending = asyncio.ensure_future(_send(reply, writer))
        try:
            await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self.left += 1
                return False
            await sending
            return False
        except ConnectionError:
            self.left += 1
            return False
        finally:
            for task in (leaving, sending):
                task.cancel()
            await asyncio.gather(leaving, sending, return_exceptions=True)


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, json.loads(body) if body else None)


async def _send(reply: Reply, writer: asyncio.StreamWriter) -> None:
    if reply.status:
        headers = {"content-type": "application/json", **reply.headers, "transfer-encoding": "chunked"}
        lines = [f"HTTP/1.1 {reply.status} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode())
    for piece in reply.pieces:
        await _chunk(writer, piece)
    while reply.ending == "endless":
        await _chunk(writer, reply.pieces[-1])
        await asyncio.sleep(0)  # the loop is the client's too
    if reply.ending == "hang":
        await writer.drain()
        await asyncio.Event().wait()
    if reply.ending == "whole" and reply.status:
        writer.write(b"0\r\n\r\n")
    await writer.drain()
    writer.close()


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


@asynccontextmanager
async def scripted_models(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedModels]:
    models = ScriptedModels()
    server = await asyncio.start_server(models.accept, "127.0.0.1", 0, ssl=tls)
    models.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield models
    finally:
        server.close()
        await models.close()
        await server.wait_closed()


@dataclass(frozen=True)
class Said:
    """A model's answer, whatever the protocol. `calls`: name and arguments. `counted`: it has counts of tokens."""

    texts: Sequence[str] = ()
    calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    finish: str = "stop"
    input_tokens: int = 11
    output_tokens: int = 7
    counted: bool = True


def said(kind: Kind, *texts: str, **more: Any) -> Reply:
    """A whole answer on this wire."""
    return Reply(pieces_of(kind, Said(texts, **more)), headers={"content-type": TYPES[kind]})


def refusal(kind: Kind, status: int, message: str, code: str = "", **headers: str) -> Reply:
    """An error on this wire. Header names with _ for -."""
    body: dict[str, Any] = {"error": message}
    if kind == "openai":
        body = {"error": {"message": message, "type": code or "invalid_request_error", "code": code or None}}
    if kind == "anthropic":
        body = {"type": "error", "error": {"type": code or "invalid_request_error", "message": message}}
    return Reply(
        [json.dumps(body).encode()], status, {name.replace("_", "-"): value for name, value in headers.items()}
    )


def pieces_of(kind: Kind, what: Said) -> list[bytes]:
    return {"ollama": _ollama, "openai": _openai, "anthropic": _anthropic}[kind](what)


def event(data: Mapping[str, Any] | str, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def _ollama(what: Said) -> list[bytes]:
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": text} for text in what.texts]
    calls = [{"function": {"name": name, "arguments": dict(arguments)}} for name, arguments in what.calls]
    if calls:
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    lines: list[dict[str, Any]] = [{"model": "m", "message": message, "done": False} for message in messages]
    reason = REASONS["ollama"].get(what.finish, "stop")
    last: dict[str, Any] = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True}
    last |= {"done_reason": reason, "load_duration": 1, "total_duration": 2}
    if what.counted:
        last |= {"prompt_eval_count": what.input_tokens, "eval_count": what.output_tokens}
    return [json.dumps(line).encode() + b"\n" for line in [*lines, last]]


def openai_chunk(delta: Mapping[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": dict(delta), "finish_reason": finish}]
    return event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more})


def _openai(what: Said) -> list[bytes]:
    pieces = [openai_chunk({"role": "assistant", "content": ""})]
    pieces += [openai_chunk({"content": text}) for text in what.texts]
    for index, (name, arguments) in enumerate(what.calls):
        text = json.dumps(dict(arguments))
        first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        pieces.append(openai_chunk({"tool_calls": [first]}))
        for part in (text[:3], text[3:]):
            pieces.append(openai_chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}))
    finish = "tool_calls" if what.calls and what.finish == "stop" else REASONS["openai"][what.finish]
    pieces.append(openai_chunk({}, finish))
    if what.counted:
        usage = {
            "prompt_tokens": what.input_tokens,
            "completion_tokens": what.output_tokens,
            "total_tokens": what.input_tokens + what.output_tokens,
        }
        pieces.append(openai_chunk(None, usage=usage))
    return [*pieces, event("[DONE]")]


def _anthropic(what: Said) -> list[bytes]:
    usage = {"input_tokens": what.input_tokens, "output_tokens": 1} if what.counted else {}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    pieces = [event({"type": "message_start", "message": message}, "message_start"), event({"type": "ping"}, "ping")]
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if what.texts:
        blocks.append(({"type": "text", "text": ""}, [{"type": "text_delta", "text": text} for text in what.texts]))
    for number, (name, arguments) in enumerate(what.calls):
        text = json.dumps(dict(arguments))
        parts = [{"type": "input_json_delta", "partial_json": part} for part in (text[:3], text[3:])]
        blocks.append(({"type": "tool_use", "id": f"call_{number}", "name": name, "input": {}}, parts))
    for index, (block, deltas) in enumerate(blocks):
        start = {"type": "content_block_start", "index": index, "content_block": block}
        pieces.append(event(start, "content_block_start"))
        for delta in deltas:
            one = {"type": "content_block_delta", "index": index, "delta": delta}
            pieces.append(event(one, "content_block_delta"))
        pieces.append(event({"type": "content_block_stop", "index": index}, "content_block_stop"))
    finish = "tool_calls" if what.calls and what.finish == "stop" else what.finish
    ended: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": REASONS["anthropic"][finish]}}
    ended["usage"] = {"output_tokens": what.output_tokens} if what.counted else {}
    pieces.append(event(ended, "message_delta"))
    return [*pieces, event({"type": "message_stop"}, "message_stop")]
