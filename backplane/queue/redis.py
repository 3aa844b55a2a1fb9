"""The queue in Redis: lists of run ids, a hash for each job, sets for caps, and sorted sets by time.

Every step that must not be cut in two is one Lua script (`lua/`), so no worker can die between taking a run and writing
its lease. A claim takes from the order of each queue that the worker serves (`jobs:order` is the default one's), where
nothing lies that may not run: caps are looked at when a run comes in and when one is settled, so its cost does not grow
with what waits. Commands are those of Redis 6.2. Time is Redis's own, so the clocks of the machines do not matter.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

from redis.exceptions import NoScriptError

from backplane.domain.runs import AGENT_QUEUES, DEFAULT_QUEUE, Priority, RunStatus
from backplane.errors import Unavailable
from backplane.queue.base import (
    Caps,
    Claim,
    Compared,
    Depth,
    FinishedJob,
    Full,
    Gate,
    Job,
    Limit,
    LiveWorker,
    LostRun,
    Queue,
    QueueDepths,
    QueueRoom,
    Reaped,
    Renewed,
    Settlement,
    Standing,
    Statistics,
    Swept,
    Whereabouts,
)
from backplane.queue.estimate import remaining_seconds
from backplane.queue.platform import FORMAT, Owner, check
from backplane.queue.redis_repair import Repair, listed
from backplane.redis.client import Argument, RedisClients, Script, live_members, translated

LUA = Path(__file__).parent / "lua"
RESERVED_SECONDS = 10
OWN_WAKE_UP_SECONDS = 60
ENQUEUED_AT_ONCE = 500
NO_ANSWER_SECONDS = 5.0
DEAD_SHOWN = 1_000
RUNNING_SAMPLED = 16
"""How many running runs are looked at for an estimate."""
LOOKED_AT = 200
"""How many runs of a user are looked at to find the one that is claimed first."""
_GATES = (None, Gate.USER, Gate.TIER, Gate.RESOURCE)
_PLACES = {
    "queued": Whereabouts.WAITS,
    "parked": Whereabouts.WAITS,
    "scheduled": Whereabouts.SCHEDULED,
    "running": Whereabouts.CLAIMED,
}
"""Where a run is by the state in its job's hash; in the order of `whereabouts.lua`."""
_LIMITS = (None, Limit.USER, Limit.TIER, Limit.OVERALL, Limit.SHARE)


class RedisQueue(Queue):
    """`lease_seconds`: how long a claim lasts; `initial_run_seconds`: the estimate before any run was measured;
    `ageing_seconds`: so much waiting weighs as much as one step of priority (0: waiting does not count). `platform`: of
    a queue that this process has opened already."""

    def __init__(
        self,
        clients: RedisClients,
        *,
        lease_seconds: float,
        initial_run_seconds: float,
        ageing_seconds: float,
        caps: Caps,
        room: QueueRoom,
        platform: str = "",
    ) -> None:
        self._clients = clients
        self._redis = clients.commands
        self._keys = clients.keys
        self._lease = int(lease_seconds * 1000)
        self._initial_run_seconds = initial_run_seconds
        self._caps = caps
        self._room = room
        rules = {
            "user": [caps.user.get(priority, 0) for priority in Priority],
            "tier": [caps.tier.get(priority, 0) for priority in Priority],
            "resources": dict(caps.resources),
        }
        capped = any([*rules["user"], *rules["tier"], *caps.resources])
        self._rules: tuple[str | int, ...] = (json.dumps(rules) if capped else "", int(ageing_seconds * 1000))
        self._reserves = bool(room.user or room.overall or any(room.tier.values()))
        self._ours = platform
        """What the key `platform` must be; empty until `open`."""
        self._admit, self._standing, self._queues, self._whereabouts = (
            Script(clients, LUA / f"{name}.lua") for name in ("admit", "standing", "queues", "whereabouts")
        )
        self._claim = Script(clients, LUA / "claim.lua", prelude=LUA / "platform.lua")
        changing = (LUA / "platform.lua", LUA / "places.lua")
        self._enqueue, self._settle, self._renew, self._forget, self._reap, self._take_over = (
            Script(clients, LUA / f"{name}.lua", prelude=changing)
            for name in ("enqueue", "settle", "renew", "forget", "reap", "take_over")
        )
        self._migrations = [
            Script(clients, LUA / f"migrate_{number}.lua", prelude=changing) for number in range(1, FORMAT + 1)
        ]
        self._repair = Repair(clients, changing, lease_ms=self._lease)

    @property
    def platform(self) -> str:
        return self._ours

    async def open(self, database: str, *, take_over: bool = False) -> None:
        keys, ours = [self._keys.jobs], str(Owner(FORMAT, database))
        while True:
            found = await self._owner()
            if take_over and found.database not in ("", database):
                await self._take_over(keys, [*self._rules, ours, ""])
                continue
            check(found, database, self._keys.prefix)
            if found.database and found.format == FORMAT:
                break
            after = Owner(found.format + 1, database)
            # Somebody else may have done it since: then it says so, and this looks again.
            await self._migrations[found.format](keys, [*self._rules, str(found), str(after), ""])
        self._ours = ours

    async def examine(self, database: str) -> None:
        check(await self._owner(), database, self._keys.prefix)

    async def _owner(self) -> Owner:
        with translated():
            return Owner.read(cast(str | None, await self._redis.get(self._keys.platform)))

    async def admit(self, run_id: str, user_id: str, priority: Priority, queue: str = DEFAULT_QUEUE) -> Full | None:
        room = self._room
        limits = (room.user, room.overall, room.tier.get(priority, 0))
        if not any(limits):
            return None
        arguments: list[Argument] = [run_id, user_id, int(priority), *limits, RESERVED_SECONDS * 1000, queue]
        reached, *numbers = await self._admit([self._keys.jobs], arguments)
        if (limit := _LIMITS[reached]) is None:
            return None
        waiting, most = numbers
        return Full(limit, waiting, most, self._caps.user.get(priority, 0))

    async def give_up_place(self, run_id: str, user_id: str, priority: Priority, queue: str = DEFAULT_QUEUE) -> None:
        if not self._reserves:
            return
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.zrem(self._keys.admitted(priority, queue), run_id)
                pipeline.zrem(self._keys.admitted_of(user_id), run_id)
                await pipeline.execute()

    async def enqueue(self, jobs: Sequence[Job]) -> list[bool]:
        taken: list[bool] = []
        for start in range(0, len(jobs), ENQUEUED_AT_ONCE):
            batch = [listed(job) for job in jobs[start : start + ENQUEUED_AT_ONCE]]
            arguments = [*self._rules, json.dumps(batch), int(self._reserves), self._ours]
            taken += map(bool, await self._enqueue([self._keys.jobs], arguments))
        return taken

    async def claim(
        self, worker_id: str, limit: int, wait_seconds: float = 0.0, *, queues: Sequence[str] = (DEFAULT_QUEUE,)
    ) -> list[Claim]:
        if wait_seconds:
            flat = await self._claim_when_woken(worker_id, limit, wait_seconds, queues)
        else:
            _, *flat = await self._claim([self._keys.jobs], self._claimed(limit, worker_id, queues))
        return [
            Claim(Job(run_id, user_id, Priority(int(priority)), int(generation), resource, queue=queue), int(crashes))
            for run_id, user_id, priority, resource, generation, crashes, queue in zip(*[iter(flat)] * 7, strict=True)
        ]

    async def _claim_when_woken(self, worker_id: str, limit: int, seconds: float, queues: Sequence[str]) -> list[Any]:
        """Both commands are sent at once: Redis carries the second out when the first ends, so a run that comes is
        claimed without another round trip. On a connection of its own, because a pipeline of the library's takes
        longer to read the answer than Redis to give it."""
        wake_up_lists = [self._keys.wake_ups_of(worker_id), *map(self._keys.wake_ups_in, queues)]
        arguments = self._claimed(limit, worker_id, queues)
        with translated():
            try:
                async with asyncio.timeout(seconds + NO_ANSWER_SECONDS), self._clients.own_connection() as connection:
                    answers = await connection.ask(
                        ("BRPOP", *wake_up_lists, seconds), ("EVALSHA", self._claim.sha, 1, self._keys.jobs, *arguments)
                    )
                woken_by, (some_left, *flat) = answers
            except NoScriptError:
                _, *flat = await self._claim([self._keys.jobs], arguments)
                return cast(list[Any], flat)
            except TimeoutError as error:
                raise Unavailable("Redis does not answer a blocking call", part="redis") from error
        if woken_by and some_left and len(queues) > 1:
            await self._pass_on(str(woken_by[0]), worker_id, set(queues) - set(flat[6::7]))
        return cast(list[Any], flat)

    async def _pass_on(self, wake_up_list: str, worker_id: str, untouched: Iterable[str]) -> None:
        """When this worker was woken by a queue that it then had no slot for, another one is to be woken."""
        for queue in untouched:
            if self._keys.wake_ups_in(queue) == wake_up_list:
                with suppress(Unavailable):  # the claim has been made; a wake-up that is lost costs some seconds
                    await self._claim([self._keys.jobs], self._claimed(0, worker_id, [queue]))

    def _claimed(self, limit: int, worker_id: str, queues: Sequence[str]) -> list[Argument]:
        """What `claim.lua` is given."""
        names = queues[0] if len(queues) == 1 else f",{','.join(queues)},"
        return [limit, self._lease, worker_id, names, self._ours]

    async def end_wait(self, worker_id: str) -> None:
        own_list = self._keys.wake_ups_of(worker_id)
        with translated():
            async with self._redis.pipeline(transaction=True) as pipeline:
                # One entry ends the wait, the other makes the claim that follows it take nothing.
                pipeline.lpush(own_list, "1", "1")
                pipeline.expire(own_list, OWN_WAKE_UP_SECONDS)
                await pipeline.execute()

    async def renew(
        self,
        worker_id: str,
        slots: int,
        claims: Sequence[Claim],
        *,
        queues: Sequence[str] = (DEFAULT_QUEUE,),
        may_lead: bool = True,
    ) -> Renewed:
        jobs = [
            (run_id, job.generation, job.user_id, int(job.priority), job.resource, *_other_than_default(job.queue))
            for run_id, job in ((claim.run_id, claim.job) for claim in claims)
        ]
        # Empty means the default queue alone, so one that serves none names the agents' queues, without an agent.
        serving = "" if tuple(queues) == (DEFAULT_QUEUE,) else ",".join(sorted(queues)) or AGENT_QUEUES
        own = (self._lease, worker_id, slots, json.dumps(jobs), serving, int(may_lead))
        arguments = [*self._rules, *own, self._ours]
        leads, *lost = await self._renew([self._keys.jobs], arguments)
        return Renewed(frozenset(lost), leads=bool(leads))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        batch = [
            (
                settlement.claim.run_id,
                settlement.claim.generation,
                settlement.outcome.value,
                settlement.status.value if settlement.status else "",
                settlement.error,
                settlement.duration_seconds,
                int(settlement.delay_seconds * 1000),
                int(settlement.is_dead),
            )
            for settlement in settlements
        ]
        if batch:
            await self._settle([self._keys.jobs], [*self._rules, json.dumps(batch), self._ours])

    async def forget(self, run_id: str, status: RunStatus | None = RunStatus.CANCELLED) -> None:
        arguments = [*self._rules, run_id, status.value if status else "", self._ours]
        await self._forget([self._keys.jobs], arguments)

    async def reap(self, limit: int) -> Reaped:
        lost, due, let_in, next_ms, flat = await self._reap([self._keys.jobs], [*self._rules, limit, self._ours])
        losses = tuple(LostRun(*flat[at : at + 3]) for at in range(0, len(flat), 3))
        return Reaped(lost, due, let_in, max(float(next_ms) / 1000, 0.0) if next_ms else None, losses)

    async def compare(self, jobs: Sequence[Job]) -> list[Compared]:
        return await self._repair.compare(self._rules, self._ours, jobs)

    async def sweep(self, user_ids: Iterable[str]) -> Swept:
        return await self._repair.sweep(self._rules, self._ours, user_ids)

    async def whereabouts(self, run_id: str) -> Whereabouts:
        state, *stands = await self._whereabouts([self._keys.jobs], [run_id])
        if not state:
            return Whereabouts.LOST if any(stands) else Whereabouts.UNKNOWN
        if state not in _PLACES:
            return Whereabouts.OVER
        return _PLACES[state] if dict(zip(_PLACES, stands, strict=True))[state] else Whereabouts.LOST

    async def crashes(self, run_id: str) -> int:
        with translated():
            return int(await cast(Any, self._redis.hget(self._keys.jobs + run_id, "crashes")) or 0)

    async def deregister(self, worker_id: str) -> None:
        with translated():
            members = await cast(Any, self._redis.zrange(self._keys.workers, 0, -1))
            own = [member for member in members if member.split("|")[0] == worker_id]
            if own:
                await self._redis.zrem(self._keys.workers, *own)
                await cast(Any, self._redis.hdel(self._keys.serving, worker_id))

    async def announce_cancel(self, run_id: str) -> None:
        with translated():
            await self._redis.publish(self._keys.cancels, run_id)

    @asynccontextmanager
    async def cancels(self) -> AsyncIterator[AsyncIterator[str]]:
        async with self._clients.pubsub() as pubsub:

            async def announced() -> AsyncIterator[str]:
                while True:
                    with suppress(Unavailable), translated():
                        await pubsub.subscribe(self._keys.cancels)
                        async for message in pubsub.listen():
                            if message["type"] == "message":
                                yield message["data"]
                    await asyncio.sleep(1)

            yield announced()

    async def workers(self) -> list[LiveWorker]:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.zrange(self._keys.workers, 0, -1, withscores=True)
                pipeline.zrange(self._keys.leases, 0, -1)
                (seconds, microseconds), members, run_ids = await pipeline.execute()
                for run_id in run_ids:
                    pipeline.hget(self._keys.job(run_id), "worker")
                running = Counter(await pipeline.execute() if run_ids else ())
        now = int(seconds) * 1000 + int(microseconds) // 1000
        live = [member.rpartition("|") for member, ends in members if ends > now]
        return [LiveWorker(worker_id, int(slots), running[worker_id]) for worker_id, _, slots in live]

    async def worker_ids(self) -> frozenset[str]:
        members = await live_members(self._redis, self._keys.workers)
        return frozenset(member.rpartition("|")[0] for member in members)

    async def statistics(self, queue: str = DEFAULT_QUEUE) -> Statistics:
        return (await self._numbers_and_standings(queue, ()))[0]

    async def served(self) -> frozenset[str]:
        live = await self.worker_ids()
        with translated():
            serving = cast(dict[str, str], await cast(Any, self._redis.hgetall(self._keys.serving)))
        named = (serving.get(worker, DEFAULT_QUEUE) for worker in live)
        return frozenset(
            queue for queues in named if not queues.startswith(AGENT_QUEUES) for queue in queues.split(",")
        )

    async def depths(self) -> list[QueueDepths]:
        flat = await self._queues([self._keys.jobs], [])
        found = []
        for queue, workers, slots, running, *depths in zip(*[iter(flat)] * 16, strict=True):
            by_priority = {
                priority: Depth(waiting, parked, max(float(since), 0.0) / 1000 if since else 0.0)
                for priority, waiting, parked, since in zip(self._keys.pending, *[iter(depths)] * 3, strict=True)
            }
            found.append(QueueDepths(queue, workers, slots, running, by_priority))
        return found

    async def standing(self, run_ids: Sequence[str]) -> list[Standing | None]:
        return (await self._numbers_and_standings(DEFAULT_QUEUE, run_ids))[1] if run_ids else []

    async def nearest_of(self, user_id: str) -> Standing | None:
        with translated():
            run_ids = await cast(Any, self._redis.srandmember(f"{self._keys.jobs}waiting:{user_id}", LOOKED_AT))
        found = [standing for standing in await self.standing(run_ids) if standing]
        return min(found, key=lambda standing: standing.wait.p50 if standing.wait else standing.position, default=None)

    async def _numbers_and_standings(
        self, queue: str, run_ids: Sequence[str]
    ) -> tuple[Statistics, list[Standing | None]]:
        arguments: list[Argument] = [RUNNING_SAMPLED, queue, *run_ids]
        scheduled, dead, queues, flat = await self._standing([self._keys.jobs], arguments)
        statistics = [self._statistics(numbers, scheduled, dead) for numbers in zip(*[iter(queues)] * 17, strict=True)]
        standings: list[Standing | None] = []
        at_gates: dict[str, tuple[float, ...]] = {"": ()}
        for index, gate_index, priority, resource, of, competing, ages in zip(*[iter(flat)] * 7, strict=True):
            if index < 0:
                standings.append(None)
                continue
            gate, own = _GATES[gate_index], statistics[of]
            cap = self._cap(gate, Priority(int(priority)), resource)
            at_gate = index - sum(own.queued.values()) + 1 if gate else 0
            wait = None
            if own.workers:
                if ages not in at_gates:
                    at_gates[ages] = self._remaining(ages, own.durations)
                wait = own.wait(
                    index + 1,
                    competing=float(competing),
                    at_gate=at_gate,
                    cap=cap,
                    remaining_at_gate=at_gates[ages],
                )
            standings.append(Standing(index + 1, wait, gate, cap))
        return statistics[0], standings

    def _statistics(self, numbers: Sequence[Any], scheduled: int, dead: int) -> Statistics:
        """From what `standing.lua` answers of one queue."""
        queue, running, workers, slots, competing, busy_with, served, *by_priority, durations, ages = numbers
        known = _seconds(durations)
        # Runs that wait take the free slots first.
        free = " 0" * min(max(slots - running, 0), RUNNING_SAMPLED)
        claimed = (kind.rpartition("=") for kind in busy_with.split(",") if kind)
        return Statistics(
            queued=dict(zip(self._keys.pending, by_priority[::2], strict=True)),
            parked=dict(zip(self._keys.pending, by_priority[1::2], strict=True)),
            running=running,
            scheduled=scheduled,
            dead=dead,
            workers=workers,
            slots=slots,
            durations=known,
            initial_run_seconds=self._initial_run_seconds,
            remaining=self._remaining(ages + free, known),
            queue=queue,
            competing=float(competing),
            busy_with={name: int(runs) for name, _, runs in claimed},
            served=frozenset(served.split(",")) if served else frozenset(),
        )

    def _remaining(self, ages: str, durations: Sequence[float]) -> tuple[float, ...]:
        return remaining_seconds(_seconds(ages), durations or (self._initial_run_seconds,))

    def _cap(self, gate: Gate | None, priority: Priority, resource: str) -> int:
        match gate:
            case Gate.USER:
                return self._caps.user.get(priority, 0)
            case Gate.TIER:
                return self._caps.tier.get(priority, 0)
            case Gate.RESOURCE:
                return self._caps.resources.get(resource, 0)
        return 0

    async def next_attempt(self, run_id: str) -> float | None:
        with translated():
            milliseconds = await self._redis.zscore(self._keys.scheduled, run_id)
        return None if milliseconds is None else float(cast(Any, milliseconds)) / 1000

    async def finished(self) -> list[FinishedJob]:
        with translated():
            run_ids = await cast(Any, self._redis.lrange(self._keys.finished, 0, -1))
            async with self._redis.pipeline(transaction=False) as pipeline:
                for run_id in run_ids:
                    pipeline.hgetall(self._keys.job(run_id))
                jobs = await pipeline.execute()
        return [
            FinishedJob(
                run_id,
                job["user"],
                RunStatus(job["status"]),
                job.get("error", ""),
                *(float(job.get(name, 0)) / 1000 for name in ("queued_at", "claimed_at", "finished_at")),
            )
            for run_id, job in zip(run_ids, jobs, strict=True)
            if job.get("state") == "finished" and job.get("status") and "user" in job
        ]

    async def mirror_dead(self, dead: Mapping[str, float]) -> None:
        newest = dict(sorted(dead.items(), key=lambda letter: letter[1])[-DEAD_SHOWN:])
        with translated():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(self._keys.dead)
                if newest:
                    pipeline.zadd(self._keys.dead, newest)
                await pipeline.execute()


def _other_than_default(queue: str) -> tuple[str, ...]:
    """What the scripts are given of a queue: nothing of the default one, whose jobs do not name it either."""
    return () if queue == DEFAULT_QUEUE else (queue,)


def _seconds(joined: str) -> tuple[float, ...]:
    return tuple(map(float, joined.split()))
