"""Redis's REST API as Upstash speaks it, in front of a real Redis: what the API's other client is tested on.

A command as `POST /`, several as `/pipeline` and `/multi-exec`, `/subscribe/{channel}` as server-sent events; a bearer
token; base64 where `Upstash-Encoding` asks for it. `fail_next` makes it do what gateways do wrong.
"""

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from backplane.process.tasks import end

TOKEN = "AYNgASQgrest-token-that-nobody-may-see="
REFUSED = {"BRPOP", "BLPOP", "SUBSCRIBE", "PSUBSCRIBE", "WATCH"}
STATUS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests"}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """In place of an answer: `status` and `body` with `headers`, or an answer that breaks off (`is_cut`), or none at
    all (`is_silent`). `after`: whether the command is carried out all the same."""

    status: int = 200
    body: bytes = b""
    headers: tuple[str, ...] = ()
    is_cut: bool = False
    is_silent: bool = False
    after: bool = False


class RestFront:
    """Serves while it is open (`rest_front`). `requests` are all that came, in order."""

    def __init__(self, redis_url: str, token: str = TOKEN) -> None:
        parts = urlsplit(redis_url)
        self._redis = parts.hostname or "", parts.port or 6379
        self._token = token
        self._free: list[Connection] = []
        self._faults = deque[Fault]()
        self._tasks = set[asyncio.Task[None]]()
        self._writers = set[asyncio.StreamWriter]()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.requests: list[Request] = []
        self.subscriptions = 0
        """How many stand and were confirmed."""
        self.of_a_line = "data: "
        """What stands before each further line of a message."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail_next(self, *faults: Fault) -> None:
        self._faults.extend(faults)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nothing listens any more, and all connections are cut."""
        if self._server:
            self._server.close()
        self.cut()
        await end(*self._tasks)
        for connection in self._free:
            await connection.disconnect(nowait=True)
        self._free.clear()

    def cut(self) -> None:
        for writer in list(self._writers):
            cast(Any, writer.transport).abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            # asyncio itself stumbles over a task of a server that was cancelled.
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while request := await _read(reader):
                    self.requests.append(request)
                    await self._answer(request, reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._faults.popleft() if self._faults else None
        if fault and fault.after:
            await self._result(request)
        if fault and fault.is_silent:
            await reader.read(1)
            raise ConnectionResetError
        if fault and fault.is_cut:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            await writer.drain()
            raise ConnectionResetError
        if fault:
            return await _write(writer, fault.status, fault.body, *fault.headers)
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return await _write(writer, 401, b'{"error":"Unauthorized"}')
        if request.path.startswith("/subscribe/"):
            channel = unquote(request.path.removeprefix("/subscribe/"))
            return await self._subscribe(channel, reader, writer)
        try:
            status, answer = await self._result(request)
        except (OSError, RedisConnectionError):
            return await _write(writer, 502, b"<html>bad gateway</html>")
        await _write(writer, status, json.dumps(answer).encode())

    async def _result(self, request: Request) -> tuple[int, Any]:
        encode = _base64 if request.headers.get("upstash-encoding") == "base64" else _text
        commands = json.loads(request.body)
        if request.path == "/":
            [answer] = await self._ask([commands])
            return (400 if isinstance(answer, ResponseError) else 200), _of(answer, encode)
        if request.path == "/pipeline":
            return 200, [_of(answer, encode) for answer in await self._ask(commands)]
        if request.path == "/multi-exec":
            answers = (await self._ask([["MULTI"], *commands, ["EXEC"]]))[-1]
            if isinstance(answers, ResponseError):
                return 400, _of(answers, encode)
            return 200, [_of(answer, encode) for answer in answers]
        return 404, {"error": "ERR not found"}

    async def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        for command in commands:
            if (name := str(command[0]).upper()) in REFUSED:
                return [ResponseError(f"ERR Command is not available: '{name}'")] * len(commands)
        async with self._connection() as connection:
            await connection.send_packed_command(cast(Any, connection).pack_commands(commands))
            return [await _one(connection) for _ in commands]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        host, port = self._redis
        options: Any = {"protocol": 2, "retry": Retry(NoBackoff(), 0)}
        connection = self._free.pop() if self._free else Connection(host=host, port=port, **options)
        try:
            await cast(Any, connection).connect()
            yield connection
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._free.append(connection)

    async def _subscribe(self, channel: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._redis
        options: Any = {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_timeout": None}
        connection = Connection(host=host, port=port, **options)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        gone = asyncio.create_task(reader.read(1))
        passing = asyncio.create_task(self._pass_on(connection, channel, writer))
        try:
            await asyncio.wait((gone, passing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(gone, passing)
            await connection.disconnect(nowait=True)
        raise ConnectionResetError

    async def _pass_on(self, connection: Connection, channel: str, writer: asyncio.StreamWriter) -> None:
        was_confirmed = False
        try:
            await cast(Any, connection).connect()
            await connection.send_command("SUBSCRIBE", channel)
            while True:
                parts = await connection.read_response()
                if not was_confirmed:
                    self.subscriptions, was_confirmed = self.subscriptions + 1, True
                event = b",".join(part if isinstance(part, bytes) else b"%d" % part for part in parts)
                event = event.replace(b"\n", f"\n{self.of_a_line}".encode())
                body = b"data: " + event + b"\n\n"
                writer.write(b"%x\r\n%s\r\n" % (len(body), body))
                await writer.drain()
        except (OSError, RedisError):
            pass
        finally:
            self.subscriptions -= was_confirmed


@asynccontextmanager
async def rest_front(redis_url: str) -> AsyncIterator[RestFront]:
    front = RestFront(redis_url)
    await front.start()
    try:
        yield front
    finally:
        await front.stop()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


async def _write(writer: asyncio.StreamWriter, status: int, body: bytes, *headers: str) -> None:
    lines = [f"HTTP/1.1 {status} {STATUS.get(status, 'Status')}", f"Content-Length: {len(body)}", *headers]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    await writer.drain()


async def _one(connection: Connection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _of(answer: Any, encode: Callable[[bytes], str]) -> dict[str, Any]:
    if isinstance(answer, ResponseError):
        code = "" if answer.status_code in (None, "ERR") else f"{answer.status_code} "
        return {"error": str(answer) if str(answer).startswith(code or "ERR ") else f"{code}{answer}"}
    return {"result": _encoded(answer, encode)}


def _encoded(value: Any, encode: Callable[[bytes], str]) -> Any:
    if isinstance(value, list):
        return [_encoded(each, encode) for each in value]
    return encode(value) if isinstance(value, bytes) else value


def _base64(value: bytes) -> str:
    return "OK" if value == b"OK" else base64.b64encode(value).decode()


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
