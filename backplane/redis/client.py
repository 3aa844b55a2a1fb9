"""Redis connections as the adapters use them: one place for time-outs, error translation and scripts.

Three ways to the same server (`redis_servers` says which): the library's client for single commands, which must answer
within seconds; one for pub/sub, which may be silent for long and is watched by TCP keep-alive; and connections that a
caller has to itself for a moment, for scripts and the wake-up list, where the library's client would take as long
again.
"""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from backplane.errors import InvalidInput, Unavailable
from backplane.redis.keys import Keys
from backplane.redis.servers import (
    NOT_THE_ONE,
    ClusterNode,
    LocatedConnection,
    LocatedTlsConnection,
    NamedServer,
    SentinelMaster,
    ServerLocator,
    Target,
    error_code,
    target_of,
)

COMMAND_SECONDS = 5.0
COMMAND_CONNECTIONS = 100
"""The most connections of one process at once. A command waits for one when all are in use."""
KEEP_ALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
PROBE_EVERY_SECONDS = 1.0
PROBE_KEPT_SECONDS = 60
Argument = str | int | float
HTTP_STATUS = "HTTP"
"""Instead of Redis's own word: a REST API refused the request (`backplane.redis.rest`)."""
REFUSED = NOT_THE_ONE | {"LOADING", "NOAUTH", "WRONGPASS", "NOPERM", "OOM", "MISCONF", "TRYAGAIN", "WRONGTYPE"}
REFUSED |= {HTTP_STATUS}
NOT_OURS = "NOTOURS"
"""The answer of the queue's scripts to a process of another platform or release than the queue's (platform.lua)."""


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """Credentials and certificates for Redis. They go before what stands in the URL; empty: as the URL has it.

    The three files are PEM: `tls_ca` says who signed the servers' certificates (empty: whom the system trusts), the
    other two are this platform's own.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""

    def tls(self) -> dict[str, str]:
        files = {"ssl_ca_certs": self.tls_ca, "ssl_certfile": self.tls_certificate, "ssl_keyfile": self.tls_key}
        return {name: file for name, file in files.items() if file}


AS_THE_URL_SAYS = RedisAccess()


class RedisClients:
    """`commands` and `blocking`, both on one URL; `keys` are the names there. `scripts_at_once` bounds the connections
    that scripts are sent over.

    On a cluster `prefix` must hold a hash tag. Raises InvalidInput when the URL is none.
    """

    def __init__(self, url: str, *, prefix: str = "", access: RedisAccess = AS_THE_URL_SAYS) -> None:
        self.keys = Keys(prefix)
        self.scripts_at_once = asyncio.Semaphore(COMMAND_CONNECTIONS)
        self._own: list[OwnConnection] = []
        self._wrote_at = float("-inf")
        self._server: ServerLocator | None = None
        connection_class, options = self._connecting(url, access)
        self.commands = Redis.from_pool(
            BlockingConnectionPool(
                COMMAND_CONNECTIONS,
                COMMAND_SECONDS,
                connection_class,
                socket_timeout=COMMAND_SECONDS,
                **options,
            )
        )
        self.blocking = Redis.from_pool(ConnectionPool(connection_class, socket_timeout=None, **options))
        # Anybody may publish what is no text: it is for the reader to pass over, and no fault of the connection.
        self._published = Redis.from_pool(
            ConnectionPool(connection_class, socket_timeout=None, encoding_errors="replace", **options)
        )

    def _connecting(self, url: str, access: RedisAccess) -> tuple[type[Any], dict[str, Any]]:
        """The class of the connections, and their options."""
        try:
            target = target_of(url)
        except ValueError:
            raise InvalidInput(
                "REDIS_URL is no URL of Redis; set redis://, rediss://, unix://, redis+sentinel://host:port/service or "
                "redis+cluster://host:port",
                field="REDIS_URL",
            ) from None
        connection_class = target.connection_class
        options = {
            **target.options,
            **{name: text for name in ("username", "password") if (text := getattr(access, name))},
            "decode_responses": True,
            "socket_connect_timeout": COMMAND_SECONDS,
            # A command is tried once more on a fresh connection: servers and proxies close idle ones.
            "retry": Retry(NoBackoff(), 1),
            # Two round trips less for each connection.
            "driver_info": None,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        }
        if connection_class is not UnixDomainSocketConnection:
            options |= {"socket_keepalive": True, "socket_keepalive_options": KEEP_ALIVE}
            options |= access.tls() if target.encrypted else {}
            self._server = _server(target, key_slot(self.keys.prefix.encode()), options, access)
            options["server"] = self._server
            connection_class = LocatedTlsConnection if target.encrypted else LocatedConnection
        return connection_class, options

    def new_connection(self) -> AbstractConnection:
        """One that the caller alone uses, connects and closes; for what blocks."""
        return cast(AbstractConnection, cast(Any, self.blocking.connection_pool).make_connection())

    @asynccontextmanager
    async def own_connection(self) -> AsyncIterator["OwnConnection"]:
        """One that nobody else uses meanwhile; kept for the next who asks."""
        own = self._own.pop() if self._own else OwnConnection(self.new_connection())
        try:
            yield own
        except BaseException:
            await own.close()
            raise
        finally:
            self._own.append(own)

    async def check(self) -> None:
        """One cheap command; raises Unavailable."""
        with translated():
            await cast(Awaitable[Any], self.commands.ping())

    async def check_write(self) -> None:
        """That it takes writes: it may answer and be full, or not reach its disk. After a write that was taken it is
        only asked for an answer for a second, so that whoever asks often costs no writes. Raises Unavailable."""
        now = time.monotonic()
        if now - self._wrote_at < PROBE_EVERY_SECONDS:
            return await self.check()
        with translated():
            await self.commands.set(self.keys.probe, "", ex=PROBE_KEPT_SECONDS)
        self._wrote_at = now

    async def eviction_policy(self) -> str | None:
        """What this Redis does when its memory is full; None where it does not say (the user may not ask)."""
        try:
            with translated():
                found = await cast(Awaitable[Any], self.commands.info("memory"))
        except (Unavailable, ResponseError):
            return None
        policy = found.get("maxmemory_policy")
        return str(policy) if policy else None

    async def close(self) -> None:
        for own in self._own:
            await own.close()
        await cast(Any, self.commands).aclose()
        await cast(Any, self.blocking).aclose()
        await cast(Any, self._published).aclose()
        if self._server:
            await self._server.close()

    @asynccontextmanager
    async def pubsub(self) -> AsyncIterator[PubSub]:
        pubsub = self._published.pubsub()
        try:
            yield pubsub
        finally:
            await cast(Any, pubsub).aclose()


class OwnConnection:
    """A connection for one caller at a time. After a fault it is closed, and connects again at the next call."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection: Any = connection

    async def ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """The answers to commands that are sent at once, once more where the connection broke. Raises the first error
        that one of them was answered with."""
        try:
            return await self._ask(commands)
        except RedisConnectionError:
            await self.close()
            return await self._ask(commands)

    async def _ask(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        await self._connection.connect()
        await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        answers, refused = [], None
        for _ in commands:
            try:
                answers.append(await self._connection.read_response())
            except ResponseError as error:
                refused = refused or error
        if refused:
            raise refused
        return answers

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


def _server(target: Target, slot: int, options: dict[str, Any], access: RedisAccess) -> ServerLocator:
    match target.kind:
        case "sentinel":
            of_sentinels = {name: value for name, value in options.items() if name.startswith("ssl_")}
            of_sentinels |= {"username": access.sentinel_username or None, "password": access.sentinel_password or None}
            return SentinelMaster(target.hosts, target.service, of_sentinels | {"ssl": target.encrypted})
        case "cluster":
            return ClusterNode(target.hosts, slot, target.connection_class, options)
        case _:
            return NamedServer(target.hosts[0])


@contextmanager
def translated() -> Iterator[None]:
    """Turns a Redis that is away, loading, not the one that may be written, or refusing the login into Unavailable."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise Unavailable(f"Redis does not answer: {type(error).__name__}: {error}", part="redis") from error
    except RedisError as error:
        if (code := error_code(error)) == NOT_OURS:
            message = (
                "Redis holds the queue of another platform or release by now; give each platform a REDIS_KEY_PREFIX of "
                "its own, and start this process again"
            )
            raise Unavailable(message, part="redis") from error
        if code in REFUSED:
            raise Unavailable(f"Redis refuses: {code}: {error}", part="redis") from error
        raise


async def live_members(redis: Redis, key: str) -> frozenset[str]:
    """Of a sorted set by their ends, in ms of Redis's own clock: those whose end is not over."""
    with translated():
        async with redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.zrange(key, 0, -1, withscores=True)
            (seconds, microseconds), members = await pipeline.execute()
    now = int(seconds) * 1000 + int(microseconds) // 1000
    return frozenset(member for member, ends in members if ends > now)


@cache
def _script_of(files: tuple[Path, ...]) -> tuple[str, str]:
    """A script's text and digest. The files are part of the release, so they are read once a process."""
    text = "\n".join(file.read_text("utf-8") for file in files)
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Script:
    """A Lua script of a file, run by its digest. What stands in a `prelude` is put before it: what several share."""

    def __init__(self, clients: RedisClients, path: Path, prelude: Path | Sequence[Path] = ()) -> None:
        self._clients = clients
        files = [prelude] if isinstance(prelude, Path) else prelude
        self._text, self.sha = _script_of((*files, path))

    async def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        [answer] = await self.batch([(keys, args)])
        return answer

    async def batch(self, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Several calls in one round trip, in order, not as one transaction. They are sent again where the connection
        breaks, so it is only safe if each may be repeated."""
        commands = [("EVALSHA", self.sha, len(keys), *keys, *args) for keys, args in calls]
        with translated():
            async with (
                asyncio.timeout(COMMAND_SECONDS),
                self._clients.scripts_at_once,
                self._clients.own_connection() as connection,
            ):
                try:
                    return await connection.ask(*commands)
                except NoScriptError:
                    await connection.ask(("SCRIPT", "LOAD", self._text))
                    return await connection.ask(*commands)
