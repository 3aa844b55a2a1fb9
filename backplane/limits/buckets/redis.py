"""Token buckets in Redis: one script takes from all of a call's buckets or from none, so the limits are exact over all
processes.

Of the calls of one process that wait for the same buckets only the first asks again: when the tokens are expected, and
at least once a second, because another call's settlement may give back tokens much sooner. Between processes, the call
that has waited longest at a bucket goes first. When Redis was emptied, all buckets are full again. While Redis is away,
calls wait.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from backplane.errors import Unavailable
from backplane.limits.buckets.base import Bucket, TokenBuckets
from backplane.process.retrying import log_unavailable, until_available
from backplane.redis.client import Argument, RedisClients, Script

LUA = Path(__file__).parent / "lua"
FIRST_SECONDS = 3.0
"""After so long without a request from the first call (its process died, Redis was away), it is not waited for."""
REPORTED_SECONDS = 20.0
"""How long the wait that a call has reported is shown by `explain`."""
RENEWED_SECONDS = 8.0

_log_waiting = log_unavailable("model tokens are waited for")

Names = tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Waiter:
    """`reported`: the time, of the monotonic clock, at which the call goes on, as it was last reported."""

    ticket: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    reported: float | None = None

    def report(self, wait: float, on_wait: Callable[[float], None]) -> None:
        """Report the wait if it has changed by more than a second, and by more than a tenth."""
        due = time.monotonic() + wait
        if self.reported is None or abs(due - self.reported) > max(wait / 10, 1.0):
            self.reported = due
            on_wait(wait)

    async def nap(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        self.woken.clear()


class RedisTokenBuckets(TokenBuckets):
    """`again_seconds`: the longest pause before the first call asks again."""

    def __init__(self, clients: RedisClients, *, again_seconds: float = 1.0) -> None:
        self._keys = clients.keys
        self._again = again_seconds
        self._lines: defaultdict[Names, list[_Waiter]] = defaultdict(list)
        """The calls that wait in this process, the first one first."""
        self._take, self._settle, self._withdraw, self._level = (
            Script(clients, LUA / f"{name}.lua", prelude=LUA / "bucket.lua")
            for name in ("take", "settle", "withdraw", "level")
        )

    async def take(
        self, run_id: str, buckets: Sequence[Bucket], estimate: float, on_wait: Callable[[float], None]
    ) -> None:
        buckets = _limited(buckets)
        if not buckets:
            return
        names, me = tuple(bucket.name for bucket in buckets), _Waiter()
        line = self._lines[names]
        line.append(me)
        taken = False
        try:
            while True:
                ask = partial(self.ask, me.ticket, time.monotonic() - me.began, buckets, estimate, run_id)
                wait = await until_available(ask, _log_waiting)
                if wait == 0:
                    taken = True
                    return
                me.report(wait, on_wait)
                await me.nap(min(wait, self._again) if line[0] is me else RENEWED_SECONDS)
        finally:
            line.remove(me)
            if line:
                line[0].woken.set()
            else:
                self._lines.pop(names, None)
            if not taken:
                with suppress(Unavailable):
                    await self._withdraw(*self._call(buckets, me.ticket, run_id))

    async def ask(
        self,
        ticket: str,
        waited: float,
        buckets: Sequence[Bucket],
        estimate: float,
        run_id: str = "",
        *,
        now: float | None = None,
    ) -> float:
        """Ask once. Returns the seconds until there may be enough tokens; 0.0: they are taken. Tickets are served in
        the order in which they began to wait. `now`, in seconds, is for a benchmark's simulated time; without it
        Redis's clock counts. Raises Unavailable."""
        times = (int(waited * 1000), estimate, int(FIRST_SECONDS * 1000), run_id, int(REPORTED_SECONDS * 1000))
        return float(await self._take(*self._call(buckets, ticket, *times, now=now))) / 1000

    async def settle(
        self, buckets: Sequence[Bucket], estimate: float, actual: float, *, now: float | None = None
    ) -> None:
        buckets = _limited(buckets)
        if not buckets or actual == estimate:
            return
        await self._settle(*self._call(buckets, actual - estimate, uuid.uuid4().hex, now=now))
        if actual < estimate:
            given = {bucket.name for bucket in buckets}
            for names, line in self._lines.items():
                if given.intersection(names):
                    line[0].woken.set()

    async def level(self, bucket: Bucket) -> float:
        if not bucket.per_second:
            return bucket.burst
        return float(await self._level(*self._call([bucket])))

    def _call(
        self, buckets: Sequence[Bucket], *more: Argument, now: float | None = None
    ) -> tuple[list[str], list[Argument]]:
        """The keys and arguments of a script."""
        keys = [self._keys.models, *(self._keys.model_tokens(bucket.name) for bucket in buckets)]
        sizes = [size for bucket in buckets for size in (bucket.per_second, bucket.burst)]
        return keys, ["" if now is None else now * 1000, *sizes, *more]


def _limited(buckets: Sequence[Bucket]) -> list[Bucket]:
    return [bucket for bucket in buckets if bucket.per_second]
