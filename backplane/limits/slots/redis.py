"""Model slots in Redis: one hash for each server, changed by scripts that give a freed slot to the next call in the
same step.

A call that waits costs nothing: its process blocks on one list of its own, its wake-up list, whatever number of calls
wait there. A process has one lease for all its calls. When it dies, its slots and its places in the line are free once
the lease ends. Each renewal of the lease also compares both sides, so that whatever was lost (a wake-up, a release, all
of Redis) is mended within a sixth of the lease. After Redis was emptied, nothing is granted for a quarter of the lease,
until every process has reported its slots; only a process that had no call before, and asks before all others, may get
a slot too early.
"""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import structlog

from backplane.errors import Unavailable
from backplane.limits.slots.base import SlotLoad, SlotRequest, Slots, WaitingForModel
from backplane.process.retrying import log_unavailable, until_available
from backplane.redis.client import Argument, RedisClients, Script, translated

LUA = Path(__file__).parent / "lua"
WAKE_UP_SECONDS = 20.0
NO_ANSWER_SECONDS = 5.0
RENEWALS = 6
"""The number of renewals in one lease. The lease in Redis is one renewal shorter: the other processes find out with
their next renewal that one has died, so its slots are free again within the lease."""
WITHHELD_RENEWALS = 1.5
"""For so many renewals nothing is granted after Redis was emptied. It is more than one, because a renewal takes some
time."""

log = structlog.get_logger()
_log_no_slot = log_unavailable("a model slot is waited for")
_log_no_grant = log_unavailable("no model slot can be granted")


@dataclass(slots=True, eq=False)
class _SlotCall:
    request: SlotRequest
    on_wait: Callable[[int], None]
    began: float
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    reported: int | None = None

    def report(self, place: int) -> None:
        """Report the call's place; 0: it has a slot. Behind the tenth place, only changes by a tenth are reported."""
        if place == 0:
            self.granted.set()
        elif not self.granted.is_set() and self._is_news(place):
            self.reported = place
            self.on_wait(place)

    def _is_news(self, place: int) -> bool:
        return self.reported is None or (
            place != self.reported and (place <= 10 or abs(place - self.reported) * 10 >= self.reported)
        )


@dataclass(slots=True)
class _SlotServer:
    """What this process knows of a server. `epoch` changes when Redis was emptied; `unsure`: a release was not
    answered; `renewed`: the monotonic time of the last request that renewed its lease there."""

    parallel: int
    models: int
    epoch: str = ""
    unsure: bool = False
    renewed: float = 0.0


class RedisSlots(Slots):
    """`lease_seconds`: how long the slots of a silent process stay taken. `turn_seconds`: how long a model stays in use
    before another one, which waits for its place at the server, may replace it."""

    def __init__(self, clients: RedisClients, *, lease_seconds: float, turn_seconds: float) -> None:
        self._clients = clients
        self._redis = clients.commands
        self._keys = clients.keys
        self._renew_seconds = lease_seconds / RENEWALS
        self._lease_seconds = lease_seconds - self._renew_seconds
        self._turn = int(turn_seconds * 1000)
        self._worker = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._next_number = 1
        self._calls: dict[int, _SlotCall] = {}
        self._servers: dict[str, _SlotServer] = {}
        self._was_used = asyncio.Event()
        self._look = asyncio.Event()
        self._acquire, self._release, self._renew = (
            Script(clients, LUA / f"{name}.lua", prelude=LUA / "server.lua") for name in ("acquire", "release", "renew")
        )

    @asynccontextmanager
    async def hold(
        self, request: SlotRequest, *, parallel: int, models: int, on_wait: Callable[[int], None]
    ) -> AsyncIterator[None]:
        if not parallel:
            yield
            return
        server = self._servers.setdefault(request.server, _SlotServer(parallel, models))
        server.parallel, server.models = parallel, models
        number = next(self._numbers)
        self._next_number = number + 1
        call = self._calls[number] = _SlotCall(request, on_wait, time.monotonic())
        self._was_used.set()
        try:
            await until_available(partial(self._request_slot, number, call), _log_no_slot)
            await call.granted.wait()
            yield
        finally:
            del self._calls[number]
            await self._release_slot(request.server, number)

    def resize(self, server: str, *, parallel: int) -> None:
        known = self._servers.get(server)
        if known is not None and known.parallel != parallel:
            known.parallel = parallel
            self._look.set()

    async def load(self, servers: Sequence[str]) -> Mapping[str, SlotLoad]:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                for server in servers:
                    pipeline.hgetall(self._keys.model_server(server))
                (seconds, microseconds), *found = await pipeline.execute()
        now = int(seconds) * 1_000_000 + int(microseconds)
        return {server: _load_of(fields, now) for server, fields in zip(servers, found, strict=True)}

    async def forget(self, server: str) -> None:
        self._servers.pop(server, None)
        with translated():
            await self._redis.delete(self._keys.model_server(server))

    async def run(self) -> None:
        await self._was_used.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._renew_forever())

    async def renew_for(self, blocked: Slots) -> None:
        if not isinstance(blocked, RedisSlots):
            raise TypeError(f"no slots in Redis: {blocked}")
        for name in {call.request.server for call in list(blocked._calls.values())}:
            asked = time.monotonic()
            await self._renew([self._keys.models], blocked._renewal_of(name))
            blocked._servers[name].renewed = asked

    async def waiting(self, run_id: str) -> WaitingForModel | None:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.hvals(self._keys.model_waits(run_id))
                (seconds, microseconds), values = await pipeline.execute()
        now = int(seconds) * 1_000_000 + int(microseconds)
        found = [wait for wait in map(json.loads, values) if int(wait["until"]) > now]
        if not found:
            return None
        oldest = min(found, key=lambda wait: int(wait["since"]))
        return WaitingForModel(
            oldest["what"],
            oldest.get("server", ""),
            oldest.get("model", ""),
            oldest.get("position"),
            datetime.fromtimestamp(int(oldest["since"]) / 1_000_000, UTC),
            float(oldest["seconds"]) if "seconds" in oldest else None,
            waiting=oldest.get("waiting"),
            slots=oldest.get("slots"),
        )

    def _arguments(self, name: str, *more: Argument) -> list[Argument]:
        server = self._servers[name]
        known = (server.epoch, int(self._renew_seconds * WITHHELD_RENEWALS * 1000))
        lease = int(self._lease_seconds * 1000)
        return [name, server.parallel, server.models, self._turn, self._worker, lease, *known, *more]

    def _saw(self, name: str, epoch: str) -> None:
        server = self._servers[name]
        if server.epoch and server.epoch != epoch:
            # Redis must know this process's slots before anything is granted.
            self._look.set()
        server.epoch = epoch

    def _report_place(self, call: _SlotCall, place: int) -> None:
        """Report the call's place. A process that was stopped for longer than its lease may have lost a granted slot,
        so it asks again."""
        if place == 0 and time.monotonic() - self._servers[call.request.server].renewed > self._lease_seconds:
            self._look.set()
        else:
            call.report(place)

    async def _request_slot(self, number: int, call: _SlotCall) -> None:
        request, waited, asked = call.request, _milliseconds_since(call.began), time.monotonic()
        more = (f"{self._worker}.{number}", request.user_id, request.model, request.run_id, waited)
        epoch, place = await self._acquire([self._keys.models], self._arguments(request.server, *more))
        self._saw(request.server, epoch)
        self._servers[request.server].renewed = asked
        self._report_place(call, int(place))

    async def _release_slot(self, name: str, number: int) -> None:
        # Without an answer, also when the wait for it is cancelled, the next renewal repeats the release.
        self._servers[name].unsure = True
        try:
            epoch = await self._release([self._keys.models], self._arguments(name, f"{self._worker}.{number}"))
        except Unavailable as error:
            log.warning("a model slot is given back later", server=name, error=error.message)
            return
        self._saw(name, epoch)

    async def _listen(self) -> None:
        while True:
            await until_available(self._receive, _log_no_grant)

    async def _receive(self) -> None:
        with translated():
            async with (
                asyncio.timeout(WAKE_UP_SECONDS + NO_ANSWER_SECONDS),
                self._clients.own_connection() as connection,
            ):
                [woken] = await connection.ask(("BRPOP", self._keys.model_wake_ups(self._worker), WAKE_UP_SECONDS))
        if woken and (call := self._calls.get(int(woken[1].rpartition(".")[2]))):
            self._report_place(call, 0)

    async def _renew_forever(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._renew_seconds):
                    await self._look.wait()
            self._look.clear()
            in_use = {call.request.server for call in self._calls.values()}
            for name in in_use | {name for name, server in self._servers.items() if server.unsure}:
                try:
                    await self._renew_at(name)
                except Unavailable as error:
                    log.warning("model slots are not renewed", server=name, error=error.message)

    def _renewal_of(self, name: str) -> list[Argument]:
        """What `renew.lua` is given. Another thread may ask for it."""
        next_number = self._next_number
        rows = [
            (
                number,
                call.request.user_id,
                call.request.model,
                call.request.run_id,
                _milliseconds_since(call.began),
                int(call.granted.is_set()),
            )
            for number, call in list(self._calls.items())
            if call.request.server == name
        ]
        return self._arguments(name, json.dumps(rows), next_number)

    async def _renew_at(self, name: str) -> None:
        server, asked = self._servers[name], time.monotonic()
        arguments = self._renewal_of(name)
        server.unsure = False
        try:
            epoch, *flat = await self._renew([self._keys.models], arguments)
        except BaseException:
            server.unsure = True
            raise
        self._saw(name, epoch)
        server.renewed = asked
        for number, place in zip(*[iter(cast(list[Any], flat))] * 2, strict=True):
            if call := self._calls.get(int(number)):
                self._report_place(call, int(place))
            else:
                # The call ended meanwhile, and may have been written again after that.
                await self._release_slot(name, int(number))


def _load_of(fields: Mapping[str, str], now: int) -> SlotLoad:
    """Calls of workers whose lease is over count no more; the next script removes them."""
    live = {name[2:] for name, ends in fields.items() if name.startswith("w:") and int(ends) > now}
    calls = [value.split("|", 2)[1] for name, value in fields.items() if _worker_of(name) in live]
    running = sum(granted != "" for granted in calls)
    return SlotLoad(running, len(calls) - running)


def _worker_of(field: str) -> str | None:
    """Of the field of a call."""
    return field[2:].rpartition(".")[0] if field.startswith("c:") else None


def _milliseconds_since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
