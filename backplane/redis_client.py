"""Redis connections as the adapters use them: one place for time-outs, error translation and scripts.

Two clients: one for commands, which must answer within seconds, and one for what blocks (the doorbell, pub/sub), which
may be silent for long and is watched by TCP keep-alive.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from backplane.errors import InvalidInput, Unavailable

COMMAND_SECONDS = 5.0
KEEP_ALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


class RedisClients:
    """`commands` and `blocking`, both on one URL."""

    def __init__(self, url: str) -> None:
        # A command is tried once more on a fresh connection: servers and proxies close idle ones.
        retry = Retry(NoBackoff(), 1)
        network: dict[str, Any] = (
            {} if url.startswith("unix:") else {"socket_keepalive": True, "socket_keepalive_options": KEEP_ALIVE}
        )
        try:
            self.commands = Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=COMMAND_SECONDS,
                socket_connect_timeout=COMMAND_SECONDS,
                retry=retry,
                **network,
            )
            self.blocking = Redis.from_url(
                url, decode_responses=True, socket_timeout=None, socket_connect_timeout=COMMAND_SECONDS, **network
            )
        except ValueError:
            raise InvalidInput(
                "REDIS_URL is no URL of Redis; set redis://, rediss:// or unix://", field="REDIS_URL"
            ) from None

    async def check(self) -> None:
        """One cheap command; raises Unavailable."""
        with translated():
            await cast(Awaitable[Any], self.commands.ping())

    async def close(self) -> None:
        await cast(Any, self.commands).aclose()
        await cast(Any, self.blocking).aclose()

    @asynccontextmanager
    async def pubsub(self) -> AsyncIterator[PubSub]:
        pubsub = self.blocking.pubsub()
        try:
            yield pubsub
        finally:
            await cast(Any, pubsub).aclose()


@contextmanager
def translated() -> Iterator[None]:
    """Turns a Redis that is away, loading, read-only or refusing the password into Unavailable."""
    try:
        yield
    except (
        RedisConnectionError,
        RedisTimeoutError,
        BusyLoadingError,
        ReadOnlyError,
        AuthenticationError,
        OSError,
    ) as error:
        raise Unavailable(f"Redis does not answer: {type(error).__name__}: {error}", part="redis") from error
    except RedisError as error:
        if str(error).startswith(("NOAUTH", "WRONGPASS", "OOM", "MISCONF", "CLUSTERDOWN")):
            raise Unavailable(f"Redis refuses: {error}", part="redis") from error
        raise


class Script:
    """A Lua script of a file, run by its digest."""

    def __init__(self, redis: "Redis", path: Path) -> None:
        self._redis = redis
        self._script = redis.register_script(path.read_text())

    async def __call__(self, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
        with translated():
            return await self._script(keys=list(keys), args=list(args))

    async def batch(self, calls: Sequence[tuple[Sequence[str], Sequence[str | int]]]) -> list[Any]:
        """Several calls in one round trip, in order, not as one transaction. Safe to repeat only if each call is.

        The library's own way would ask the server before each batch whether it has the script.
        """
        with translated():
            try:
                return await self._all(calls)
            except NoScriptError:
                await self._redis.script_load(self._script.script)
                return await self._all(calls)

    async def _all(self, calls: Sequence[tuple[Sequence[str], Sequence[str | int]]]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for keys, args in calls:
                pipeline.evalsha(self._script.sha, len(keys), *keys, *map(str, args))
            return await pipeline.execute()
