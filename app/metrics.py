"""What the API counts itself, and what it reads of the platform when it is asked for its metrics.

The state of the queue and of the runs is read from Redis and the database by whichever API process is scraped, so every
one of them reports the same: take the greatest, not the sum. It is read at most every few seconds, and an answer waits
for no part longer than PART_SECONDS: while one is away its metrics are missing and `agent_part_up` says so.

Labels have few values: the paths of routes with their `{parameters}`, never a path as it was called.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kept_answer import KeptAnswer
from backplane.domain.agents import PoolActivity, PoolCounts
from backplane.domain.events import Event
from backplane.errors import PlatformError
from backplane.process.metrics import exposition
from backplane.process.tasks import end
from backplane.queue.base import QueueDepths
from backplane.resources import Resources

REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
NO_ROUTE = "none"
OTHER = "other"
KEPT_SECONDS = 1.0
"""So long a scrape is given again: to encode all metrics takes some milliseconds, of which a flood would take all."""
FRESH_SECONDS = 3.0
PART_SECONDS = 2.0

Value = TypeVar("Value")
PostedBy = Literal["user", "hook"]

log = structlog.get_logger()


class ApiMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "agent_http_requests", "Requests that were answered.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "agent_http_request_seconds",
            "From a request to the beginning of its answer, so that a stream counts as what it took to open.",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=registry,
        )
        self._stream_lag = Histogram(
            "agent_stream_lag_seconds",
            "From an event being made by a worker to its being received here; of each batch the first.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self._bus_events = Counter(
            "agent_bus_events_posted",
            "Events that were posted to the bus: stored, there already (duplicate), or refused.",
            ["by", "result"],
            registry=registry,
        )
        self._bus_announcements = Counter(
            "agent_bus_announcements",
            "Calls of Redis that announce new events: published, or missed while Redis is away.",
            ["result"],
            registry=registry,
        )
        self._watchers = Gauge("agent_stream_watchers", "Streams that are open.", registry=registry)

    def watchers(self, count: Callable[[], int]) -> None:
        """Report at each scrape what `count` returns then."""
        self._watchers.set_function(count)

    def posted(
        self, by: Literal["user", "hook"], result: Literal["stored", "duplicate", "refused"], count: int
    ) -> None:
        if count:
            self._bus_events.labels(by, result).inc(count)

    def announced(self, *, published: bool) -> None:
        self._bus_announcements.labels("published" if published else "missed").inc()

    def received(self, events: Sequence[Event]) -> None:
        """A batch of events of one run has come from the event log."""
        if made_at := events[0].made_at:
            self._stream_lag.observe(max((datetime.now(UTC) - made_at).total_seconds(), 0.0))

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)


class RequestMetrics:
    """ASGI middleware around all that refuse a request, so what they refuse is counted too."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, is_answered = time.monotonic(), False

        # A plain function, since it is called for every chunk of a stream.
        def observed(message: Message) -> Awaitable[None]:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                self._metrics.answered(scope, message["status"], time.monotonic() - began)
            return send(message)

        try:
            await self._app(scope, receive, observed)
        except Exception:
            if not is_answered:
                self._metrics.answered(scope, 500, time.monotonic() - began)
            raise


class PlatformMetrics(Collector):
    """The queue, the runs and the parts, as they were when they were read last. `close` it before the resources."""

    def __init__(self, resources: Resources, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._depths = _PartReading(resources.queue.depths)
        self._runs = _PartReading(resources.store.runs.under_way)
        self._dead_letters = _PartReading(resources.store.dead_letters.count)
        self._pools = _PartReading(resources.store.agent_pools.counts)
        self._activity = _PartReading(resources.store.agent_pools.activity)
        self._writes = _PartReading(resources.redis.check_write)
        self._workspace = _PartReading(resources.workspaces.check)
        self._parts: Mapping[str, tuple[_PartReading[Any], ...]] = {
            "redis": (self._depths, self._writes),
            "database": (self._runs, self._dead_letters, self._pools, self._activity),
            "workspace": (self._workspace,),
        }
        registry.register(self)
        self._kept = KeptAnswer(self._scrape, KEPT_SECONDS)

    async def scrape(self) -> tuple[bytes, str]:
        """All metrics of this process, at most KEPT_SECONDS old, and their content type."""
        return await self._kept.get()

    async def _scrape(self) -> tuple[bytes, str]:
        await asyncio.gather(*(reading.refresh() for readings in self._parts.values() for reading in readings))
        return exposition(self._registry)

    async def close(self) -> None:
        await self._kept.close()
        for readings in self._parts.values():
            for reading in readings:
                await reading.close()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._depths.value is not None:
            yield from _of_queues(self._depths.value)
        if self._runs.value is not None:
            runs = GaugeMetricFamily("agent_runs", "Runs that are not over.", labels=["status"])
            for status, count in self._runs.value.items():
                runs.add_metric([status.value], count)
            yield runs
        if self._dead_letters.value is not None:
            yield GaugeMetricFamily(
                "agent_dead_letters", "Failed runs that wait for an operator.", self._dead_letters.value
            )
        if self._pools.value is not None:
            yield from _of_pools(self._pools.value)
        if self._activity.value is not None:
            yield from _of_activity(self._activity.value)
        up = GaugeMetricFamily("agent_part_up", "Whether a part of the platform answered.", labels=["part"])
        for part, readings in self._parts.items():
            up.add_metric([part], float(all(reading.is_up for reading in readings)))
        yield up


def _of_queues(queues: Sequence[QueueDepths]) -> Iterator[GaugeMetricFamily]:
    depth = GaugeMetricFamily(
        "agent_queue_depth",
        "Runs that wait: may be taken (waiting), or are held back by a cap (parked).",
        labels=["queue", "priority", "state"],
    )
    oldest = GaugeMetricFamily(
        "agent_queue_oldest_seconds",
        "How long the run to be taken next has been allowed to run; 0: none waits.",
        labels=["queue", "priority"],
    )
    running = GaugeMetricFamily("agent_queue_running", "Runs that a worker has claimed.", labels=["queue"])
    workers = GaugeMetricFamily("agent_queue_workers", "Live workers that serve the queue.", labels=["queue"])
    slots = GaugeMetricFamily(
        "agent_queue_slots", "Runs that these workers hold at once, of all queues that they serve.", labels=["queue"]
    )
    for found in queues:
        for priority, of in found.by_priority.items():
            name = priority.name.lower()
            depth.add_metric([found.queue, name, "waiting"], of.waiting)
            depth.add_metric([found.queue, name, "parked"], of.parked)
            oldest.add_metric([found.queue, name], of.oldest_seconds)
        running.add_metric([found.queue], found.running)
        workers.add_metric([found.queue], found.workers)
        slots.add_metric([found.queue], found.slots)
    return iter((depth, oldest, running, workers, slots))


def _of_pools(pools: Sequence[PoolCounts]) -> Iterator[GaugeMetricFamily]:
    processes = GaugeMetricFamily("agent_pool_processes", "Processes of a pool that take agents.", labels=["pool"])
    free = GaugeMetricFamily("agent_pool_free", "Agents more that these processes take.", labels=["pool"])
    agents = GaugeMetricFamily(
        "agent_pool_agents",
        "Agents of a pool: they have a process (placed), need one and have none (unplaced), or sleep (asleep).",
        labels=["pool", "state"],
    )
    for of in pools:
        processes.add_metric([of.pool.name], of.processes)
        free.add_metric([of.pool.name], max(of.capacity - of.placed, 0))
        asleep = max(of.agents - of.placed - of.unplaced, 0)
        for state, count in (("placed", of.placed), ("unplaced", of.unplaced), ("asleep", asleep)):
            agents.add_metric([of.pool.name, state], count)
    return iter((processes, free, agents))


def _of_activity(found: Sequence[PoolActivity]) -> Iterator[GaugeMetricFamily]:
    agents = GaugeMetricFamily(
        "agent_pool_activity",
        "Agents of a pool by what they do; approval, question, budget: what a person is asked.",
        labels=["pool", "role", "state"],
    )
    longest = GaugeMetricFamily(
        "agent_pool_longest_wait_seconds",
        "How long the first of a pool's agents has waited for a person.",
        labels=["pool", "role", "state"],
    )
    for of in found:
        agents.add_metric([of.pool, of.role, of.state], of.agents)
        if of.longest_wait_seconds:
            longest.add_metric([of.pool, of.role, of.state], of.longest_wait_seconds)
    return iter((agents, longest))


class _PartReading(Generic[Value]):
    """What one call answered last. `value` is None when it has not answered, or failed."""

    def __init__(self, read: Callable[[], Awaitable[Value]]) -> None:
        self.value: Value | None = None
        self.is_up = False
        self._read = read
        self._read_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Read again when it is time. A call that does not answer in PART_SECONDS goes on behind: many scrapes do not
        make many calls."""
        if self._task is None or self._task.done():
            if time.monotonic() - self._read_at < FRESH_SECONDS:
                return
            self._task = asyncio.create_task(self._call(), name="read for metrics")
        _, late = await asyncio.wait({self._task}, timeout=PART_SECONDS)
        if late:
            self.value, self.is_up = None, False

    async def _call(self) -> None:
        try:
            self.value = await self._read()
            self.is_up = True
        except PlatformError as error:
            log.warning("cannot read metrics", error=error.message)
            self.value, self.is_up = None, False
        except Exception as error:
            log.error("reading for metrics failed by a fault of the platform", exc_info=error)
            self.value, self.is_up = None, False
        self._read_at = time.monotonic()

    async def close(self) -> None:
        if self._task is not None:
            await end(self._task)
