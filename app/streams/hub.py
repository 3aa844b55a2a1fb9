"""Who watches what: one Redis connection an API process, however many watchers.

Each watched run, each user whose whole feed is watched, and the watched events of a user's bus have a buffer of the
newest frames (`app.streams.buffer`), filled by one loop. Nothing here is history; a buffer may be emptied at any
moment. A subscription begins before the first watcher reads the history and lasts a little longer than the last
watcher.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import ceil
from typing import TypeVar

import structlog
from sse_starlette.sse import AppStatus

from app.edge.protocol import running_server
from app.metrics import ApiMetrics
from app.streams.buffer import Frame, StreamEnd, Watched, Watcher
from app.streams.bus import BusKey, WatchedBus
from app.streams.deployment_logs import DeploymentLogs, WatchedLog
from app.streams.feed import WatchedFeed
from app.streams.mailboxes import Mailboxes, WatchedMailbox
from backplane.domain.bus import EventFilter
from backplane.domain.events import Event, EventType, Place, encode
from backplane.domain.runs import RunStatus
from backplane.domain.users import User
from backplane.errors import TooManyStreams, Unavailable
from backplane.logs.base import Announced, BusAnnounced, EventLog, Subscription, SubscriptionLost
from backplane.process.tasks import run_together
from backplane.queue.base import Queue, Standing
from backplane.store import Store

log = structlog.get_logger()

LINGER_SECONDS = 5.0
POSITION_SECONDS = 1.0
LOOKS_A_HEARTBEAT = 4
LOOK_SECONDS = 0.5
FEEDS_READ_AT_ONCE = 2
"""Database connections that feeds use at most."""
OUTAGE_SECONDS = 1.0
SHORTEST_TOKEN_CHECK_SECONDS = 0.5

K = TypeVar("K")
W = TypeVar("W", "WatchedRun", WatchedFeed, WatchedBus, WatchedMailbox)


def frame_of(event: Event) -> Frame[int]:
    body = f"id: {event.id}\nevent: {event.type}\ndata: {event.line}\n\n".encode()
    return Frame(event.id, body, event.type is EventType.END)


def live_frame(event: Event) -> bytes:
    """Without an id: it is no part of the history, and a reconnecting client's cursor stays where it was."""
    return f"event: {event.type}\ndata: {event.line}\n\n".encode()


class WatchedRun(Watched[int]):
    def __init__(self, run_id: str, buffer_size: int, buffer_bytes: int, *, is_queued: bool = False) -> None:
        super().__init__(0, buffer_size, buffer_bytes)
        self.run_id = run_id
        self.is_queued = is_queued
        self._progress = 0

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.type is EventType.PROGRESS:
                self._progress += 1
                self.notice(EventType.PROGRESS, self._progress, live_frame(event))
                continue
            if event.id <= self.newest:
                continue
            if event.id != self.newest + 1:
                self.restart(event.id - 1)
            self.extend([frame_of(event)], event.id)
            if event.type in (EventType.MODEL, EventType.STATUS):
                # The call is over, and may have been another worker's.
                self.withdraw(EventType.PROGRESS)
            if event.type is EventType.STATUS:
                self.is_queued = event.status == RunStatus.QUEUED
                if not self.is_queued:
                    self.withdraw(self.run_id)
        self.wake()

    def reached(self, last_id: int) -> None:
        """The run is known to have come so far. Watchers that have not are sent to the history; the others stay."""
        if last_id > self.newest:
            self.restart(last_id)
            self.wake()

    def may_have_missed(self) -> None:
        self.epoch += 1
        self.wake()


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Of all streams of an API process.

    `buffer_events` and `buffer_bytes` of a watched run are kept. `heartbeat_seconds`: silence after which a watcher
    gets a comment, and how often the database is asked whether a watched run went on without an event by Redis (a
    worker may die between its commit and its publishing, with Redis emptied). A watcher that takes nothing for
    `send_timeout_seconds` is cut off. `token_check_seconds`: how often the tokens of all streams are looked up again,
    in one query; a stream whose token was revoked ends.

    `max_watchers` are for all users: the last tenths are kept for higher priorities, and one user gets half of them at
    most, or `max_watchers_of_user`. `positions_max`: queued runs whose places a stream of all runs of a user shows."""

    buffer_events: int
    buffer_bytes: int
    heartbeat_seconds: float
    send_timeout_seconds: float
    token_check_seconds: float
    max_watchers: int
    max_watchers_of_user: int
    positions_max: int

    @property
    def most_of_user(self) -> int:
        return min(self.max_watchers_of_user, max(self.max_watchers // 2, 1))


class Hub:
    """`run` it in a task for as long as the process serves."""

    def __init__(
        self, event_log: EventLog, store: Store, queue: Queue, metrics: ApiMetrics, limits: StreamLimits
    ) -> None:
        self._event_log = event_log
        self._store = store
        self._queue = queue
        self._metrics = metrics
        self._limits = limits
        self._watchers = dict[Watcher, None]()
        self._watchers_of = Counter[str]()
        self._runs: dict[str, WatchedRun] = {}
        self._feeds: dict[str, WatchedFeed] = {}
        self._buses: dict[BusKey, WatchedBus] = {}
        self._mailboxes = Mailboxes(store)
        self._deployment_logs = DeploymentLogs(store, limits.buffer_events, limits.buffer_bytes)
        self._subscription: Subscription | None = None
        self._some_queued = asyncio.Event()
        self._some_feed_due = asyncio.Event()

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    @contextmanager
    def watching(self, watcher: Watcher) -> Iterator[None]:
        """Count it as a stream. Raises Unavailable or TooManyStreams: many may have been let in by `open` at once."""
        user = watcher.access.user
        self._check_room(user)
        self._watchers[watcher] = None
        self._watchers_of[user.id] += 1
        try:
            yield
        finally:
            del self._watchers[watcher]
            self._watchers_of[user.id] -= 1
            if not self._watchers_of[user.id]:
                del self._watchers_of[user.id]

    async def open(self, user: User, run_id: str, *, is_queued: bool) -> WatchedRun:
        """The run, which this user may see, listened to from now on. Raises Unavailable when Redis is away or there are
        too many watchers, TooManyStreams when there are too many of this user."""
        self._admit(user)
        return await self.go_on(run_id, is_queued=is_queued)

    async def go_on(self, run_id: str, *, is_queued: bool) -> WatchedRun:
        """As `open`, for a stream that has its room already and comes to its next run. Raises Unavailable when Redis is
        away."""
        subscription = self._listening()
        while True:
            run = self._runs.setdefault(
                run_id, WatchedRun(run_id, self._limits.buffer_events, self._limits.buffer_bytes)
            )
            async with run.lock:
                if run.swept:
                    continue
                run.idle_since = asyncio.get_running_loop().time()
                if not run.subscribed:
                    await subscription.add(run_id)
                    run.subscribed = True
                    run.is_queued = is_queued
            if run.is_queued:
                self._some_queued.set()
            return run

    async def open_feed(self, user: User) -> WatchedFeed:
        """All of the user's runs, listened to from now on. Raises Unavailable when Redis or the database is away or
        there are too many watchers, TooManyStreams when there are too many of this user."""
        subscription, user_id = self._admit(user), user.id
        while True:
            feed = self._feeds.setdefault(
                user_id,
                WatchedFeed(
                    user_id,
                    Place(0, 0),
                    self._limits.buffer_events,
                    self._limits.buffer_bytes,
                    self._limits.positions_max,
                ),
            )
            async with feed.lock:
                if feed.swept:
                    continue
                feed.idle_since = asyncio.get_running_loop().time()
                if not feed.subscribed:
                    await subscription.add_user(user_id)
                    feed.restart(await self._store.events.present())
                    queued = await self._store.runs.page(
                        user_id, status=RunStatus.QUEUED, limit=self._limits.positions_max
                    )
                    feed.queued = {run.id: None for run in queued}
                    feed.subscribed = True
                    feed.may_have_missed()
                    self._some_feed_due.set()
            if feed.queued:
                self._some_queued.set()
            return feed

    async def open_bus(self, user: User, wanted: EventFilter) -> WatchedBus:
        """The user's events on the bus that are wanted, listened to from now on. Raises as `open_feed`."""
        subscription, key = self._admit(user), (user.id, wanted)
        while True:
            made = WatchedBus(key, self._limits.buffer_events, self._limits.buffer_bytes)
            bus = self._buses.setdefault(key, made)
            async with bus.lock:
                if bus.swept:
                    continue
                bus.idle_since = asyncio.get_running_loop().time()
                if not bus.subscribed:
                    await subscription.add_bus(user.id)
                    bus.restart(await self._store.bus.present(user.id))
                    bus.subscribed = True
                return bus

    async def open_mailbox(self, user: User, agent_id: str) -> WatchedMailbox:
        """The agent, which this user may see, whose messages are listened to from now on. Raises as `open`."""
        subscription = self._admit(user)
        while True:
            mailbox = self._mailboxes.add(agent_id, user.id)
            async with mailbox.lock:
                if mailbox.swept:
                    continue
                mailbox.idle_since = asyncio.get_running_loop().time()
                if not mailbox.subscribed:
                    await subscription.add_user(user.id)
                    mailbox.subscribed = True
                return mailbox

    async def open_deployment_log(self, user: User, deployment_id: str) -> WatchedLog:
        """The lines of a deployment, which this user may see, looked at from now on. Raises as `open`."""
        self._check_room(user)
        return await self._deployment_logs.open(deployment_id)

    def _check_room(self, user: User) -> None:
        room = ceil(self._limits.max_watchers * (7 + user.priority) / 10)
        if len(self._watchers) >= room:
            raise Unavailable(
                f"this API process serves {len(self._watchers)} streams already, and more than {room} are not for the "
                f"tier {user.tier} (STREAM_WATCHERS_MAX); try again, or ask another one",
                part="api",
            )
        if self._watchers_of[user.id] >= self._limits.most_of_user:
            raise TooManyStreams(
                f"you have {self._watchers_of[user.id]} streams open at this API process, and no more may be "
                "(STREAM_WATCHERS_USER_MAX); close some, or watch all your runs in one: GET /agent/events",
                retry_after=5,
            )

    def _admit(self, user: User) -> Subscription:
        self._check_room(user)
        return self._listening()

    def _listening(self) -> Subscription:
        if self._subscription is None:
            raise Unavailable("the API is starting", part="redis", retry_after=1)
        return self._subscription

    async def run(self) -> None:
        async with self._event_log.subscription() as subscription:
            self._subscription = subscription
            await run_together(
                receive_events=self._receive(subscription),
                read_feeds=self._read_feeds(),
                find_agents=self._mailboxes.run(),
                read_deployment_logs=self._deployment_logs.run(),
                look_after_watchers=self._look_after_watchers(),
                sweep=self._sweep(subscription),
                send_positions=self._send_positions(),
                check_what_is_watched=self._check(),
                check_tokens=self._check_tokens(),
            )

    async def _receive(self, subscription: Subscription) -> None:
        async for received in subscription.listen():
            if isinstance(received, SubscriptionLost):
                self._may_have_missed(received)
            elif isinstance(received, BusAnnounced):
                for bus in self._buses_of(received.user_id):
                    bus.look()
                    self._some_feed_due.set()
            elif isinstance(received, Announced):
                self._mailboxes.announced(received.user_id, received.run_id)
                if watched := self._feeds.get(received.user_id):
                    watched.announced(received.run_id, received.last_id)
                    self._some_feed_due.set()
            elif watched_run := self._runs.get(received[0].run_id):
                self._metrics.received(received)
                watched_run.add(received)
                if watched_run.is_queued:
                    self._some_queued.set()

    def _may_have_missed(self, lost: SubscriptionLost) -> None:
        for run in self._runs.values():
            if lost.run_id == run.run_id or lost == SubscriptionLost():
                run.may_have_missed()
        if lost.run_id:
            return
        for feed in self._feeds.values():
            if lost.user_id in ("", feed.user_id):
                feed.may_have_missed()
        for bus in self._buses.values():
            if lost.user_id in ("", bus.user_id):
                bus.look()
        self._mailboxes.ring_all()
        self._some_feed_due.set()

    def _buses_of(self, user_id: str) -> list[WatchedBus]:
        return [bus for bus in self._buses.values() if bus.user_id == user_id]

    def _read_by_rows(self) -> list[WatchedFeed | WatchedBus]:
        """Buffers whose events are read from the database, and are only announced by Redis."""
        return [*self._feeds.values(), *self._buses.values()]

    async def _read_feeds(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._some_feed_due.clear()
            dues = {feed: feed.due_at for feed in self._read_by_rows() if feed.due_at is not None}
            now = loop.time()
            due = iter([feed for feed, due_at in dues.items() if due_at <= now])
            while some := list(islice(due, FEEDS_READ_AT_ONCE)):
                await asyncio.gather(*map(self._read, some))
                if any(isinstance(feed, WatchedFeed) and feed.queued for feed in some):
                    self._some_queued.set()
            soonest = min((at for feed in self._read_by_rows() if (at := feed.due_at) is not None), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(soonest):
                    await self._some_feed_due.wait()

    async def _read(self, feed: WatchedFeed | WatchedBus) -> None:
        try:
            await feed.read(self._store)
        except Unavailable as error:
            log.warning("a feed cannot be read", user=feed.user_id, error=error.message)
            feed.due_at = asyncio.get_running_loop().time() + OUTAGE_SECONDS

    async def _look_after_watchers(self) -> None:
        shortest = min(self._limits.heartbeat_seconds, self._limits.send_timeout_seconds)
        while True:
            await asyncio.sleep(min(shortest / LOOKS_A_HEARTBEAT, LOOK_SECONDS))
            now, stopping = asyncio.get_running_loop().time(), _server_stops()
            for watcher in list(self._watchers):
                silent = now - watcher.sent_at
                if stopping:
                    watcher.end(StreamEnd.SHUTDOWN)
                elif watcher.is_sending and silent >= self._limits.send_timeout_seconds:
                    watcher.end(StreamEnd.TOO_SLOW)
                elif not watcher.is_sending and silent >= self._limits.heartbeat_seconds:
                    watcher.remind()

    async def _sweep(self, subscription: Subscription) -> None:
        while True:
            await asyncio.sleep(LINGER_SECONDS)
            await _sweep(self._runs, subscription.remove)
            await _sweep(self._feeds, partial(self._leave_user, subscription))
            await _sweep(self._mailboxes.watched, partial(self._leave_mailbox, subscription))
            self._mailboxes.swept()
            await _sweep(self._buses, partial(self._leave_bus, subscription))

    async def _leave_bus(self, subscription: Subscription, key: BusKey) -> None:
        # All of a user's buffers share a channel; another one may be about to subscribe to it.
        if len(self._buses_of(key[0])) == 1:
            await subscription.remove_bus(key[0])

    async def _leave_user(self, subscription: Subscription, user_id: str) -> None:
        # The user's feed and mailboxes share a channel; as above.
        if self._mailboxes.are_of(user_id) + (user_id in self._feeds) == 1:
            await subscription.remove_user(user_id)

    async def _leave_mailbox(self, subscription: Subscription, agent_id: str) -> None:
        await self._leave_user(subscription, self._mailboxes.watched[agent_id].user_id)

    async def _send_positions(self) -> None:
        while True:
            await self._some_queued.wait()
            # What was opened a moment ago has no watcher yet.
            runs = {run.run_id: run for run in self._runs.values() if run.is_queued}
            feeds = [feed for feed in self._feeds.values() if feed.queued]
            if not runs and not feeds:
                self._some_queued.clear()
            asked = [run_id for run_id, run in runs.items() if run.watchers]
            asked += [run_id for feed in feeds if feed.watchers for run_id in feed.queued]
            try:
                standings = dict(zip(asked, await self._queue.standing(asked), strict=True)) if asked else {}
            except Unavailable as error:
                log.warning("cannot send positions", error=error.message)
                standings = {}
            for run_id, standing in standings.items():
                if standing is None:
                    continue
                body = _position(run_id, standing)
                if (run := runs.get(run_id)) and run.is_queued:
                    run.notice(run_id, standing.position, body)
                for feed in feeds:
                    if run_id in feed.queued:
                        feed.notice(run_id, standing.position, body)
            await asyncio.sleep(POSITION_SECONDS)

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self._limits.heartbeat_seconds)
            for feed in self._read_by_rows():
                feed.look()
            self._mailboxes.ring_all()
            self._some_feed_due.set()
            watched = {run_id: run for run_id, run in self._runs.items() if run.watchers}
            try:
                newest = await self._store.events.last_ids(list(watched)) if watched else {}
            except Unavailable as error:
                log.warning("cannot check watched runs", error=error.message)
                continue
            for run_id, last_id in newest.items():
                watched[run_id].reached(last_id)

    async def _check_tokens(self) -> None:
        """While the database is away nothing is known, and streams go on."""
        while True:
            await asyncio.sleep(max(self._limits.token_check_seconds, SHORTEST_TOKEN_CHECK_SECONDS))
            digests = {watcher.access.digest for watcher in self._watchers}
            if not digests:
                continue
            try:
                users = await self._store.users.of_digests(digests)
            except Unavailable as error:
                log.warning("cannot check the tokens of streams", error=error.message)
                continue
            for watcher in list(self._watchers):
                access = watcher.access
                if access.digest in digests and users.get(access.digest) != access.user:
                    watcher.end(StreamEnd.REVOKED)


async def _sweep(watched: dict[K, W], unsubscribe: Callable[[K], Awaitable[None]]) -> None:
    for name, one in list(watched.items()):
        async with one.lock:
            if one.watchers or asyncio.get_running_loop().time() - one.idle_since < LINGER_SECONDS:
                continue
            try:
                if one.subscribed:
                    await unsubscribe(name)
            except Unavailable as error:
                log.warning("cannot end a subscription", of=str(name), error=error.message)
                continue
            one.swept = True
            del watched[name]


def _server_stops() -> bool:
    """uvicorn waits for open streams to end before it lets the application end. The library learns of it by the
    server's signal handler where it could wrap that, else the handler leads to the server."""
    server = running_server()
    return AppStatus.should_exit or (server is not None and server.should_exit)


def _position(run_id: str, standing: Standing) -> bytes:
    data = {
        "position": standing.position,
        "estimated_wait_seconds": round(standing.wait.p50, 1) if standing.wait else None,
        "estimated_wait_p90_seconds": round(standing.wait.p90, 1) if standing.wait else None,
    }
    return live_frame(encode(run_id, 0, EventType.POSITION, data))
