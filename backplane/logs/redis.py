"""Events in Redis: one stream a run, one pub/sub channel a run, one message a batch (a JSON object a line)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from redis.asyncio.client import PubSub

from backplane import redis_keys as keys
from backplane.errors import Unavailable
from backplane.events import Event, decode
from backplane.logs.base import Batch, EventLog, Interrupted, Subscription
from backplane.redis_client import RedisClients, Script, translated

APPEND = Path(__file__).parent / "lua" / "append.lua"
RECONNECT_SECONDS = 0.5
CONFIRM_SECONDS = 5.0


class RedisEventLog(EventLog):
    """`keep_events` a run at least, for `keep_seconds` after the last one."""

    def __init__(self, clients: RedisClients, *, keep_events: int, keep_seconds: int) -> None:
        self._clients = clients
        self._redis = clients.commands
        self._keep_events = keep_events
        self._keep_seconds = keep_seconds
        self._append = Script(self._redis, APPEND)

    async def append(self, batches: Sequence[Batch]) -> list[bool]:
        calls = []
        for batch in batches:
            arguments: list[str | int] = [
                batch.generation,
                keys.channel(batch.run_id),
                self._keep_events,
                self._keep_seconds,
            ]
            for event in batch.events:
                arguments += [event.id, event.line]
            calls.append(([keys.job(batch.run_id), keys.stream(batch.run_id)], arguments))
        return [bool(taken) for taken in await self._append.batch(self._redis, calls)]

    async def after(self, run_id: str, cursor: int, limit: int) -> list[Event]:
        with translated():
            entries = await cast(Any, self._redis.xrange(keys.stream(run_id), min=f"({cursor}-0", count=limit))
        return [decode(fields["e"]) for _, fields in entries]

    async def last_id(self, run_id: str) -> int | None:
        with translated():
            entries = await cast(Any, self._redis.xrevrange(keys.stream(run_id), count=1))
        return int(entries[0][0].split("-")[0]) if entries else None

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[Subscription]:
        async with self._clients.pubsub() as pubsub:
            yield RedisSubscription(pubsub)


class RedisSubscription(Subscription):
    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub
        self._confirmed: dict[str, asyncio.Event] = {}
        self._work = asyncio.Event()

    async def add(self, run_id: str) -> None:
        channel = keys.channel(run_id)
        confirmed = self._confirmed.setdefault(channel, asyncio.Event())
        with translated():
            await self._pubsub.subscribe(channel)
            self._work.set()
            try:
                async with asyncio.timeout(CONFIRM_SECONDS):
                    await confirmed.wait()
            except TimeoutError as error:
                raise Unavailable("Redis does not confirm a subscription", part="redis") from error

    async def remove(self, run_id: str) -> None:
        channel = keys.channel(run_id)
        self._confirmed.pop(channel, None)
        with translated():
            await self._pubsub.unsubscribe(channel)

    async def listen(self) -> AsyncIterator[list[Event] | Interrupted]:
        while True:
            await self._work.wait()
            try:
                with translated():
                    # redis-py subscribes to its channels again when it reconnects; each is confirmed once more then.
                    async for message in self._pubsub.listen():
                        if message["type"] == "message":
                            yield [decode(line) for line in message["data"].split("\n")]
                        elif message["type"] == "subscribe" and self._confirm(message["channel"]):
                            yield Interrupted()
                # The last channel was given up, unless one was added just now.
                if not self._pubsub.subscribed:
                    self._work.clear()
            except Unavailable:
                yield Interrupted()
                await asyncio.sleep(RECONNECT_SECONDS)

    def _confirm(self, channel: str) -> bool:
        """Whether this channel had been confirmed before: then the connection was lost in between."""
        confirmed = self._confirmed.get(channel)
        if confirmed is None:
            return False
        again = confirmed.is_set()
        confirmed.set()
        return again
