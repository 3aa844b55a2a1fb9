"""Mends the queue in Redis: writes again what was lost, and takes out what contradicts.

Redis may lose any key and any entry: evicted, deleted by hand, of an older release, of a replica that was behind. Each
script looks at a page (PAGE) and decides within itself, on what is there at that moment, so it needs no lock and does
not stand in the way of claims and settlements. The database knows which runs there are (`worker.reconciler`).

What is written anew by itself is not looked at: the wake-up list, workers, the leader, reserved places, durations.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from backplane.domain.runs import DEFAULT_QUEUE, Priority
from backplane.queue.base import Compared, Job, Swept
from backplane.redis.client import Argument, RedisClients, Script, translated

LUA = Path(__file__).parent / "lua"
PAGE = 500
"""Entries that one script looks at, which takes about 2 ms of Redis."""
SETS_AT_ONCE = 20
Rules = tuple[Argument, ...]


def listed(job: Job) -> tuple[str | int | float, ...]:
    """A job as `enqueue.lua` and `compare.lua` are given it."""
    queue = () if job.queue == DEFAULT_QUEUE else (job.queue,)
    return (job.run_id, job.user_id, int(job.priority), job.resource, job.generation, job.since * 1000, *queue)


def _of_queue(queue: str) -> str:
    return "" if queue == DEFAULT_QUEUE else f"queue:{queue}:"


class Repair:
    """`rules`: the first arguments of every script, and `ours` the last (`RedisQueue`)."""

    def __init__(self, clients: RedisClients, preludes: Sequence[Path], *, lease_ms: int) -> None:
        self._keys = clients.keys
        self._lease_ms = lease_ms
        self._redis = clients.commands
        self._compare = Script(clients, LUA / "compare.lua", prelude=[*preludes, LUA / "types.lua"])
        self._entries, self._counts, self._gates, self._lists = (
            Script(clients, LUA / f"{name}.lua", prelude=preludes) for name in ("entries", "counts", "gates", "lists")
        )

    async def compare(self, rules: Rules, ours: str, jobs: Sequence[Job]) -> list[Compared]:
        found: list[Compared] = []
        for start in range(0, len(jobs), PAGE):
            page = [listed(job) for job in jobs[start : start + PAGE]]
            arguments = [*rules, self._lease_ms, json.dumps(page), ours]
            found += map(Compared, await self._compare([self._keys.jobs], arguments))
        return found

    async def sweep(self, rules: Rules, ours: str, user_ids: Iterable[str]) -> Swept:
        queues = [DEFAULT_QUEUE, *await self._members(self._keys.queues)]
        of_queues = [f"{_of_queue(queue)}{part}" for queue in queues for part in ("order", "parked")]
        mended, waiting = await self._compared_sets(rules, ours, [*of_queues, "scheduled"])
        mended += (await self._pages(rules, ours, "leases", "0"))[0]
        let_in, unleased = 0, set[str]()
        names, users = await self._members(self._keys.gates), sorted(set(user_ids))
        counts = [*rules, json.dumps(names), json.dumps(users), ours]
        gates_differ, users_differ = await self._counts([self._keys.jobs], counts)
        for start in range(0, len(names), SETS_AT_ONCE):
            gates = names[start : start + SETS_AT_ONCE]
            if gates_differ:
                mended += (await self._compared_sets(rules, ours, [f"parked:{name}" for name in gates]))[0]
            arguments = [*rules, json.dumps(gates), PAGE, ours]
            wrong, entered, without = await self._gates([self._keys.jobs], arguments)
            mended, let_in, unleased = mended + wrong, let_in + entered, unleased | set(without)
        for start in range(0, len(users) if users_differ else 0, SETS_AT_ONCE):
            names = users[start : start + SETS_AT_ONCE]
            mended += (await self._compared_sets(rules, ours, [f"waiting:{name}" for name in names]))[0]
        for start in range(0, len(queues), SETS_AT_ONCE):
            mended += await self._mend_lists_of(rules, ours, queues[start : start + SETS_AT_ONCE])
        return Swept(mended, let_in, frozenset(waiting), frozenset(unleased))

    async def _pages(self, rules: Rules, ours: str, name: str, cursor: str) -> tuple[int, set[str]]:
        """How many entries of a structure were taken out from this cursor on, and the runs that stay."""
        out, found = 0, set[str]()
        while True:
            cursor, wrong, runs = await self._entries([self._keys.jobs], [*rules, name, cursor, PAGE, ours])
            out += wrong
            found.update(runs)
            if cursor == "0":
                return out, found

    async def _compared_sets(self, rules: Rules, ours: str, names: Sequence[str]) -> tuple[int, set[str]]:
        """How many entries of these structures, of which most are small, were taken out, and the runs that stay."""
        out, found = 0, set[str]()
        for start in range(0, len(names), SETS_AT_ONCE):
            some = names[start : start + SETS_AT_ONCE]
            first = [([self._keys.jobs], [*rules, name, "0", PAGE, ours]) for name in some]
            for name, (cursor, wrong, runs) in zip(some, await self._entries.batch(first), strict=True):
                out += wrong
                found.update(runs)
                if cursor != "0":
                    more, rest = await self._pages(rules, ours, name, cursor)
                    out, found = out + more, found | rest
        return out, found

    async def _members(self, key: str) -> list[str]:
        names: set[Any] = set()
        cursor: Any = 0
        while True:
            with translated():
                cursor, page = await self._redis.sscan(key, cursor, count=PAGE)
            names.update(page)
            if not int(cursor):
                return sorted(names)

    async def _mend_lists_of(self, rules: Rules, ours: str, queues: Sequence[str]) -> int:
        """In how many of these queues, of which most are short, the lists differed."""
        mended, by_queue = 0, len(Priority)
        first = [
            ([self._keys.jobs], [*rules, int(priority), 0, PAGE, queue, ours])
            for queue in queues
            for priority in Priority
        ]
        answers = await self._lists.batch(first)
        for number, queue in enumerate(queues):
            pages = answers[by_queue * number : by_queue * (number + 1)]
            runs = [run for _, page in pages for run in page]
            differs = any(is_wrong for is_wrong, _ in pages) or len(set(runs)) != len(runs)
            if differs or any(len(page) == PAGE for _, page in pages):
                mended += await self._mend_lists(rules, ours, queue)
        return mended

    async def _mend_lists(self, rules: Rules, ours: str, queue: str) -> int:
        """1 when the lists differed from the order, and were written anew."""
        seen: set[str] = set()
        for priority in Priority:
            passed, page = 0, PAGE
            while page == PAGE:
                arguments = [*rules, int(priority), passed, PAGE, queue, ours]
                is_wrong, runs = await self._lists([self._keys.jobs], arguments)
                # As many as in the order: where one stands twice, one is missing, or it has moved between two pages.
                if is_wrong or not seen.isdisjoint(runs) or len(set(runs)) != len(runs):
                    return int((await self._lists([self._keys.jobs], [*rules, 0, 0, 0, queue, ours]))[0])
                seen.update(runs)
                page = len(runs)
                passed += page
        return 0
