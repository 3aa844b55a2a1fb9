"""Redis by a REST API (Upstash's), for an API process that runs serverless and keeps no connection to Redis.

The requests are upstash-redis's: its addresses, headers and base64. It knows nothing of time-outs, statuses, redirects
or subscriptions, and would send again whatever failed; that is done here. The library's own names and answers stay
below: `RestConnection` looks to redis-py like a connection, so the adapters, their scripts and their pipelines are the
same by either way, and so are the errors.

What it does not do: blocking commands, WATCH, and Redis's own pub/sub connections. Workers and controllers need these,
and have REDIS_URL.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast
from urllib.parse import quote

import httpx
from redis._parsers.base import BaseParser
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from upstash_redis.asyncio import Redis as UpstashRedis
from upstash_redis.errors import UpstashError
from upstash_redis.http import AsyncHttpClient

from backplane.errors import InvalidInput
from backplane.redis.client import COMMAND_SECONDS, HTTP_STATUS, RedisAccess, RedisClients

SILENT_SECONDS = 60.0
"""A subscription that brings nothing for so long is made anew: what lies between may have forgotten it."""
MAY_BE_REPEATED = frozenset({"ping", "time", "info", "get", "exists", "type", "ttl", "script", "zrem", "publish"})
MAY_BE_REPEATED |= {"hget", "hgetall", "hvals", "lrange", "smembers", "sscan", "srandmember"}
MAY_BE_REPEATED |= {"zrange", "zscore", "zcard", "xrange", "xrevrange"}
"""Commands that change nothing, or nothing more when they are carried out again; who listens to a channel passes over
what was published before."""
BLOCKING = frozenset({"blpop", "brpop", "blmove", "bzpopmin", "bzpopmax", "subscribe", "psubscribe", "watch"})
QUOTAS = ("ERR max ", "ERR DB capacity ")
"""What the service says when it takes no more: requests of a day, connections, bytes."""
Command = list[str]


class BrokenOff(RedisConnectionError):
    """The connection broke when the request may have arrived."""


class RestApi:
    """`url` without user and query, `token` as the service gives it. Raises redis-py's errors."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._redis = _Library(self._url, token)
        self._streams = httpx.AsyncClient(
            timeout=httpx.Timeout(COMMAND_SECONDS, read=SILENT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            event_hooks={"response": [_check_status]},
        )

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to commands, in one request. MULTI and EXEC around them make them one transaction. Where the
        connection broke they are sent once more, if all of them may be repeated. Raises the first error that one was
        answered with."""
        try:
            return await self._ask(commands)
        except BrokenOff:
            if not all(map(_may_be_repeated, commands)):
                raise
            return await self._ask(commands)

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                answers = await self._answers(commands)
        except (httpx.TimeoutException, TimeoutError):
            raise RedisTimeoutError(f"no answer of the REST API within {COMMAND_SECONDS:g} s") from None
        except httpx.ConnectError as error:
            raise RedisConnectionError(f"the REST API cannot be reached: {error}") from None
        except httpx.HTTPError as error:
            raise BrokenOff(f"the REST API broke off: {type(error).__name__}: {error}") from None
        except UpstashError as error:
            raise _error(str(error)) from None
        except UnicodeDecodeError:
            raise  # a value that is no text, as redis-py says so
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RedisConnectionError("what answers at UPSTASH_REDIS_REST_URL is no REST API of Redis") from None
        if len(answers) != len(commands):
            raise RedisConnectionError(f"the REST API gave {len(answers)} answers to {len(commands)} commands")
        return answers

    async def _answers(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        if blocking := next((command[0] for command in commands if command[0] in BLOCKING), None):
            raise _needs_connection(blocking.upper())
        if commands[0] == ["multi"] and commands[-1] == ["exec"]:
            answers = await self._sent(self._redis.multi(), commands[1:-1])
            return ["OK", *["QUEUED"] * len(answers), answers]
        if len(commands) == 1:
            return [await self._redis.execute(commands[0])]
        return await self._sent(self._redis.pipeline(), commands)

    async def _sent(self, pipeline: Any, commands: Sequence[Command]) -> list[Any]:
        for command in commands:
            pipeline.execute(command)
        return cast(list[Any], await pipeline.exec())

    async def published(self, channel: str) -> AsyncGenerator[list[bytes]]:
        """The lines of what is published on a channel. The first list is empty: from then on all is received. It ends
        when nothing was published for SILENT_SECONDS, else with redis-py's errors; close it."""
        for is_last in (False, True):
            is_confirmed = False
            try:
                async with aclosing(self._published(channel)) as published:
                    async for lines in published:
                        is_confirmed = True
                        yield lines
                return
            except BrokenOff:
                if is_confirmed or is_last:
                    raise

    async def _published(self, channel: str) -> AsyncGenerator[list[bytes]]:
        # What is compressed is kept back until there is enough of it.
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",
        }
        address = f"{self._url}/subscribe/{quote(channel, safe='')}"
        try:
            async with (
                asyncio.timeout(COMMAND_SECONDS) as limit,
                self._streams.stream("POST", address, headers=headers) as response,
            ):
                lines, is_confirmed = _Lines(channel), False
                async for chunk in response.aiter_bytes():
                    found = lines.of(chunk)
                    if not is_confirmed and lines.is_confirmed:
                        limit.reschedule(None)
                        is_confirmed = True
                        yield []
                    if found and is_confirmed:
                        yield found
        except httpx.ReadTimeout:
            return
        except (httpx.ConnectError, TimeoutError) as error:
            raise RedisConnectionError(f"the REST API cannot be reached: {error or 'no answer'}") from None
        except httpx.HTTPError as error:
            raise BrokenOff(f"the REST API broke off: {type(error).__name__}: {error}") from None
        raise BrokenOff("the REST API ended a subscription")

    async def close(self) -> None:
        await self._redis.close()
        await self._streams.aclose()


class _Library(UpstashRedis):
    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, token, rest_encoding="base64", rest_retries=0, allow_telemetry=False)
        self._http = _Http(self._update_sync_token)


class _Http(AsyncHttpClient):
    """Within seconds, and with an eye on the status."""

    def __init__(self, keep_sync_token: Any) -> None:
        super().__init__("base64", 0, 0, keep_sync_token)
        self._client.timeout = httpx.Timeout(COMMAND_SECONDS)
        self._client.event_hooks = {"response": [_check_status]}


async def _check_status(response: httpx.Response) -> None:
    """Raises what an answer other than 200 means; redirects are not followed, because the token would go with them."""
    status = response.status_code
    if status == 200:
        return
    if status == 400:
        await response.aread()
        try:
            raise _error(str(response.json()["error"]))
        except (ValueError, KeyError, TypeError):
            pass
    reason = f"the REST API answered {status}"
    if status in (401, 403):
        reason += "; set UPSTASH_REDIS_REST_TOKEN to a token that may write"
    elif status < 400 or status in (404, 405):
        reason += "; set UPSTASH_REDIS_REST_URL to the address of the API itself"
    raise ResponseError(reason, status_code=HTTP_STATUS)


def _error(message: str) -> Exception:
    if message.startswith(QUOTAS):
        return ResponseError(message.removeprefix("ERR "), status_code=HTTP_STATUS)
    return cast(Exception, cast(Any, BaseParser).parse_error(message))


def _may_be_repeated(command: Command) -> bool:
    name, *arguments = command
    if name == "set":
        return not {"nx", "xx", "get"} & {argument.lower() for argument in arguments[2:]}
    return name in MAY_BE_REPEATED


class _Lines:
    """Takes the events of a subscription apart: `subscribe,channel,1`, then `message,channel,text`. A text of several
    lines may come as several `data:` or as it is, so a line that begins nothing goes on with the text."""

    def __init__(self, channel: str) -> None:
        self._confirming, self._before = f"subscribe,{channel},".encode(), f"message,{channel},".encode()
        self._left = b""
        self.is_confirmed = False

    def of(self, chunk: bytes) -> list[bytes]:
        *lines, self._left = (self._left + chunk).split(b"\n")
        found = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                text = text[5:].removeprefix(b" ")
            elif not text or text.startswith((b":", b"event:", b"id:", b"retry:")):
                continue
            if text.startswith(self._confirming):
                self.is_confirmed = True
            else:
                found.append(text.removeprefix(self._before))
        return found


class RestConnection(AbstractConnection):
    """Nothing stands between two commands, so it is always connected. Answers are read when a command is sent."""

    def __init__(self, *, rest: RestApi, **options: Any) -> None:
        super().__init__(**options)
        self._rest = rest
        self._answers = deque[Any]()

    def repr_pieces(self) -> list[tuple[str, str]]:
        return [("by", "REST")]

    @property
    def is_connected(self) -> bool:
        return True

    async def connect(self) -> None:
        pass

    async def disconnect(self, *_: Any, **__: Any) -> None:
        self._answers.clear()

    async def can_read(self) -> bool:
        return False

    def pack_command(self, *args: Any) -> Any:
        return self.pack_commands([args])

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> Any:
        return [self._texts(*command) for command in commands]

    def _texts(self, name: Any, *args: Any) -> Command:
        """As redis-py would write them. Names in small letters: the library reshapes the answers to those in capitals,
        and redis-py does so here."""
        try:
            texts = [bytes(cast(Any, self.encoder).encode(arg)).decode() for arg in args]
        except UnicodeDecodeError:
            raise DataError("REST takes text alone, and an argument is none; encode it first") from None
        first, *rest = str(name).split()
        return [first.lower(), *rest, *texts]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._answers = deque(await self._rest.ask(command))

    async def read_response(self, *_: Any, **__: Any) -> Any:
        return self._answers.popleft()


class RestClients(RedisClients):
    """As RedisClients, by REST. What needs a connection of its own raises InvalidInput."""

    def __init__(self, url: str, token: str, *, prefix: str = "") -> None:
        self.rest = RestApi(url, token)
        super().__init__(url, prefix=prefix)

    def _connecting(self, url: str, access: RedisAccess) -> tuple[type[Any], dict[str, Any]]:
        # `ask` decides what is sent again. Answers are as in the second version of Redis's protocol.
        options = {"rest": self.rest, "decode_responses": True, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
        return RestConnection, options

    @asynccontextmanager
    async def pubsub(self) -> AsyncIterator[PubSub]:
        raise _needs_connection("SUBSCRIBE")
        yield  # what makes it an iterator

    async def close(self) -> None:
        await super().close()
        await self.rest.close()


def _needs_connection(command: str) -> InvalidInput:
    return InvalidInput(
        f"{command} needs a connection to Redis, which REST has not; set REDIS_URL for this process, and leave "
        "UPSTASH_REDIS_REST_URL to the API",
        field="UPSTASH_REDIS_REST_URL",
    )
