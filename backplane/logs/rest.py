"""Events over Redis's REST API: the log is as ever, and each channel that is listened to is one request whose answer
does not end.

So a channel may be lost alone, and only what it brings is read again from the history. What is no text or no event
counts as lost too: then the history has what it was. A process that watches many runs keeps as many requests open.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import structlog
from redis.exceptions import RedisError

from backplane.errors import Unavailable
from backplane.logs.base import Received, Subscription, SubscriptionLost
from backplane.logs.redis import CONFIRM_SECONDS, RECONNECT_SECONDS, RedisEventLog, received_on
from backplane.logs.room import LogLimits
from backplane.process.tasks import end
from backplane.redis.client import translated
from backplane.redis.keys import Keys
from backplane.redis.rest import RestApi, RestClients

LONGEST_RECONNECT_SECONDS = 8.0
UNREAD = 1000
"""How many batches may wait for whoever listens, before the server is kept waiting."""

log = structlog.get_logger()


class RestEventLog(RedisEventLog):
    def __init__(self, clients: RestClients, *, limits: LogLimits, keep_seconds: int) -> None:
        super().__init__(clients, limits=limits, keep_seconds=keep_seconds)
        self._rest = clients.rest

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[Subscription]:
        subscription = RestSubscription(self._rest, self._keys)
        try:
            yield subscription
        finally:
            await subscription.close()


class RestSubscription(Subscription):
    """One task a channel reads, and `listen` hands on what all of them read."""

    def __init__(self, rest: RestApi, keys: Keys) -> None:
        self._rest = rest
        self._keys = keys
        self._readers: dict[str, _ChannelReader] = {}
        self._received = asyncio.Queue[Received](UNREAD)

    async def add(self, run_id: str) -> None:
        await self._subscribe(self._keys.channel(run_id), SubscriptionLost(run_id=run_id))

    async def remove(self, run_id: str) -> None:
        await self._unsubscribe(self._keys.channel(run_id))

    async def add_user(self, user_id: str) -> None:
        await self._subscribe(self._keys.user_channel(user_id), SubscriptionLost(user_id=user_id))

    async def remove_user(self, user_id: str) -> None:
        await self._unsubscribe(self._keys.user_channel(user_id))

    async def add_bus(self, user_id: str) -> None:
        await self._subscribe(self._keys.bus_user_channel(user_id), SubscriptionLost(user_id=user_id))

    async def remove_bus(self, user_id: str) -> None:
        await self._unsubscribe(self._keys.bus_user_channel(user_id))

    async def listen(self) -> AsyncIterator[Received]:
        while True:
            yield await self._received.get()

    async def close(self) -> None:
        await end(*(reader.task for reader in self._readers.values()))
        self._readers.clear()

    async def _subscribe(self, channel: str, lost: SubscriptionLost) -> None:
        reader = self._readers.get(channel)
        if reader is None:
            reader = self._readers[channel] = _ChannelReader(self._rest, self._keys, channel, lost, self._received)
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await reader.confirmed()
        except (Unavailable, TimeoutError) as error:
            if self._readers.get(channel) is reader:
                await self._unsubscribe(channel)
            if isinstance(error, Unavailable):
                raise
            raise Unavailable("Redis does not confirm a subscription", part="redis") from None

    async def _unsubscribe(self, channel: str) -> None:
        if reader := self._readers.pop(channel, None):
            await end(reader.task)


class _ChannelReader:
    """Reads one channel until its task is ended, and subscribes again whenever it is cut off."""

    def __init__(
        self, rest: RestApi, keys: Keys, channel: str, lost: SubscriptionLost, received: asyncio.Queue[Received]
    ) -> None:
        self._rest = rest
        self._keys = keys
        self._channel = channel
        self._lost = lost
        self._received = received
        self._was_confirmed = False
        self._first: asyncio.Future[Unavailable | None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._follow(), name=f"listen to {channel}")
        self.task.add_done_callback(lambda _: self._say_first(Unavailable("no longer listened to", part="redis")))

    async def confirmed(self) -> None:
        """Returns when the channel is listened to for the first time. Raises Unavailable when it could not be."""
        if fault := await asyncio.shield(self._first):
            raise Unavailable(fault.message, part="redis")

    def _say_first(self, fault: Unavailable | None) -> None:
        if not self._first.done():
            self._first.set_result(fault)

    async def _follow(self) -> None:
        pause = RECONNECT_SECONDS
        while True:
            fault = await self._read()
            if not self._first.done():
                return self._say_first(fault)
            if fault is None:
                continue
            if self._was_confirmed:
                pause = RECONNECT_SECONDS
                log.warning("events are not received for a moment", channel=self._channel, error=fault.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_RECONNECT_SECONDS)

    async def _read(self) -> Unavailable | None:
        """Until it is cut off, and why; None when it was only silent for long."""
        self._was_confirmed = False
        try:
            with translated():
                async with aclosing(self._rest.published(self._channel)) as published:
                    async for lines in published:
                        await self._hand_on(lines)
        except Unavailable as error:
            return error
        except RedisError as error:
            return Unavailable(f"Redis refuses a subscription: {error}", part="redis")
        return None

    async def _hand_on(self, lines: Sequence[bytes]) -> None:
        if not lines:
            self._was_confirmed = True
            if self._first.done():
                await self._received.put(self._lost)
            return self._say_first(None)
        try:
            texts = [line.decode() for line in lines]
            for received in received_on(self._keys, self._channel, texts):
                await self._received.put(received)
        except ValueError as error:
            log.warning("what is no event was published", channel=self._channel, error=str(error))
            await self._received.put(self._lost)
