"""Events in Redis: one stream and one pub/sub channel for each run, and one message for each batch, with a JSON object
on each line.

The stream has only what the database does not have yet, and is gone when the database has all. PUBLISH takes no memory,
so events that are stored reach their watchers also while Redis is full.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from backplane.domain.events import Event, UnknownEventType, decode
from backplane.errors import Unavailable
from backplane.logs.base import (
    Announced,
    Appended,
    Batch,
    BusAnnounced,
    EventLog,
    Received,
    Subscription,
    SubscriptionLost,
)
from backplane.logs.room import LogLimits, LogRoom, RedisMemory, room_of
from backplane.redis.client import RedisClients, Script, translated
from backplane.redis.keys import Keys

APPEND = Path(__file__).parent / "lua" / "append.lua"
RECONNECT_SECONDS = 0.5
CONFIRM_SECONDS = 5.0

log = structlog.get_logger()


class RedisEventLog(EventLog):
    """`keep_seconds`: how long events that were not stored stay after the last of them."""

    def __init__(self, clients: RedisClients, *, limits: LogLimits, keep_seconds: int) -> None:
        self._clients = clients
        self._redis = clients.commands
        self._keys = clients.keys
        self._limits = limits
        self._keep_seconds = keep_seconds
        self._append = Script(clients, APPEND)

    async def append(self, batches: Sequence[Batch]) -> list[Appended]:
        calls = []
        for batch in batches:
            arguments: list[str | int] = [
                batch.generation,
                self._keys.channel(batch.run_id),
                batch.stored_id + 1,
                self._keep_seconds,
                self._keys.user_channel(""),
                batch.user_id,
                batch.run_id,
            ]
            for event in batch.events:
                arguments += [event.id, event.line]
            calls.append(([self._keys.job(batch.run_id), self._keys.stream(batch.run_id)], arguments))
        return [Appended(answer) for answer in await self._append.batch(calls)]

    async def show(self, events: Sequence[Event]) -> None:
        with translated():
            for event in events:
                await self._redis.publish(self._keys.channel(event.run_id), event.line)

    async def after(self, run_id: str, cursor: int, limit: int) -> list[Event]:
        with translated():
            entries = await cast(Any, self._redis.xrange(self._keys.stream(run_id), min=f"({cursor}-0", count=limit))
        return [decode(fields["e"]) for _, fields in entries]

    async def last_id(self, run_id: str) -> int | None:
        with translated():
            entries = await cast(Any, self._redis.xrevrange(self._keys.stream(run_id), count=1))
        return int(entries[0][0].split("-")[0]) if entries else None

    async def room(self) -> LogRoom:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.info("memory")
                pipeline.zcard(self._keys.workers)
                info, workers = await pipeline.execute()
        # What Redis itself leaves out when it compares the two.
        used = info["used_memory"] - info.get("mem_not_counted_for_evict", 0)
        return room_of(self._limits, RedisMemory(used, info["maxmemory"]), workers)

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[Subscription]:
        yield RedisSubscription(self._clients)


class RedisSubscription(Subscription):
    """`listen` alone connects and reads; `add` and `remove` only write, and only while the connection stands.

    It does not use redis-py's PubSub, which reconnects in whichever task meets the fault, while others use the
    connection.
    """

    def __init__(self, clients: RedisClients) -> None:
        self._keys = clients.keys
        self._new_connection = clients.new_connection
        self._connection: AbstractConnection | None = None
        self._sending = asyncio.Lock()
        self._tried = asyncio.Event()
        self._confirmed: dict[str, asyncio.Event] = {}

    async def add(self, run_id: str) -> None:
        await self._subscribe(self._keys.channel(run_id))

    async def remove(self, run_id: str) -> None:
        await self._unsubscribe(self._keys.channel(run_id))

    async def add_user(self, user_id: str) -> None:
        await self._subscribe(self._keys.user_channel(user_id))

    async def remove_user(self, user_id: str) -> None:
        await self._unsubscribe(self._keys.user_channel(user_id))

    async def add_bus(self, user_id: str) -> None:
        await self._subscribe(self._keys.bus_user_channel(user_id))

    async def remove_bus(self, user_id: str) -> None:
        await self._unsubscribe(self._keys.bus_user_channel(user_id))

    async def _subscribe(self, channel: str) -> None:
        confirmed = self._confirmed.setdefault(channel, asyncio.Event())
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self._tried.wait()
                await self._send("SUBSCRIBE", channel)
                await confirmed.wait()
        except TimeoutError as error:
            raise Unavailable("Redis does not confirm a subscription", part="redis") from error
        finally:
            if not confirmed.is_set():
                self._confirmed.pop(channel, None)

    async def _unsubscribe(self, channel: str) -> None:
        self._confirmed.pop(channel, None)
        await self._send("UNSUBSCRIBE", channel)

    async def _send(self, *command: str) -> None:
        # One at a time, so that none writes to a connection on which another has just failed. A connection that is gone
        # would connect itself again to send this.
        async with self._sending:
            if self._connection is None or not self._connection.is_connected:
                raise Unavailable("Redis does not answer: events cannot be listened to", part="redis")
            with translated():
                await self._connection.send_command(*command, check_health=False)

    async def listen(self) -> AsyncIterator[Received]:
        while True:
            try:
                with translated():
                    async with self._connected() as connection:
                        async for received in self._receive(connection):
                            yield received
            except (Unavailable, RedisError, ValueError) as error:
                log.warning("events are not received for a moment", error=str(error))
            await asyncio.sleep(RECONNECT_SECONDS)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AbstractConnection]:
        connection = self._new_connection()
        connection.retry = Retry(NoBackoff(), 0)
        try:
            await cast(Any, connection).connect()
            yield connection
        finally:
            self._connection = None
            self._tried.set()
            await connection.disconnect(nowait=True)

    async def _receive(self, connection: AbstractConnection) -> AsyncIterator[Received]:
        # Redis answers in order: once so many channels are confirmed, all earlier ones are listened to again.
        missing, again = len(self._confirmed), any(confirmed.is_set() for confirmed in self._confirmed.values())
        if missing:
            await connection.send_command("SUBSCRIBE", *self._confirmed, check_health=False)
        self._connection = connection
        self._tried.set()
        while True:
            kind, channel, content = await connection.read_response(timeout=math.inf, push_request=True)
            if kind == "message":
                for received in received_on(self._keys, channel, content.split("\n")):
                    yield received
            elif kind == "subscribe":
                if channel in self._confirmed:
                    self._confirmed[channel].set()
                missing -= 1
                if missing == 0 and again:
                    yield SubscriptionLost()


def received_on(keys: Keys, channel: str, lines: Sequence[str]) -> list[Received]:
    """What was published on a channel. Raises ValueError for what nobody here publishes."""
    users, buses = keys.user_channel(""), keys.bus_user_channel("")
    if channel.startswith(users):
        pairs = [line.split(" ") for line in lines]
        return [Announced(channel.removeprefix(users), run_id, int(last_id)) for run_id, last_id in pairs]
    if channel.startswith(buses):
        return [BusAnnounced(channel.removeprefix(buses))]
    events = _known(lines)
    return [events] if events else []


def _known(lines: Sequence[str]) -> list[Event]:
    """The events of types that this release knows. A newer worker may publish others; a reader that misses a number
    reads the history."""
    try:
        return [decode(line) for line in lines]
    except UnknownEventType:
        return [event for line in lines for event in _if_known(line)]


def _if_known(line: str) -> list[Event]:
    try:
        return [decode(line)]
    except UnknownEventType:
        return []
