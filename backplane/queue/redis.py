"""The queue in Redis: lists of run ids, a hash a job, and sorted sets by time.

Every step that must not be cut in two is one Lua script (`lua/`), so no worker can die between taking a run and holding
its lease. Commands are those of Redis 6.2. Time is Redis's own, so the clocks of the machines do not matter.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from backplane import redis_keys as keys
from backplane.errors import Unavailable
from backplane.queue.base import Claim, Job, Queue, Reaped, Standing, Statistics
from backplane.redis_client import RedisClients, Script, translated
from backplane.runs import Priority

LUA = Path(__file__).parent / "lua"
JOB_PREFIX = keys.job("")
FINISHED_JOB_SECONDS = 3600
LONGEST_WAIT_SECONDS = 5.0


class RedisQueue(Queue):
    """`lease_seconds`: how long a claim holds; `initial_run_seconds`: the estimate before any run was measured."""

    def __init__(self, clients: RedisClients, *, lease_seconds: float, initial_run_seconds: float) -> None:
        self._clients = clients
        self._redis = clients.commands
        self._lease = int(lease_seconds * 1000)
        self._initial_run_seconds = initial_run_seconds
        self._enqueue, self._claim, self._renew, self._finish, self._release, self._forget, self._reap = (
            Script(self._redis, LUA / f"{name}.lua")
            for name in ("enqueue", "claim", "renew", "finish", "release", "forget", "reap")
        )

    async def enqueue(self, job: Job) -> bool:
        pending = keys.PENDING[job.priority]
        arguments: list[str | int] = [job.run_id, job.user_id, int(job.priority), job.generation]
        return bool(await self._enqueue([keys.job(job.run_id), pending, keys.DOORBELL], arguments))

    async def claim(self, worker_id: str, limit: int) -> list[Claim]:
        names = [keys.LEASES, keys.DOORBELL, *keys.PENDING.values()]
        flat = await self._claim(names, [limit, self._lease, worker_id, JOB_PREFIX])
        return [
            Claim(Job(run_id, user_id, Priority(int(priority)), int(generation)), int(crashes))
            for run_id, user_id, priority, generation, crashes in zip(*[iter(flat)] * 5, strict=True)
        ]

    async def wait(self, seconds: float) -> None:
        # A bell can be taken by a worker that dies before it claims, so nobody trusts the silence for long.
        pause = min(seconds, LONGEST_WAIT_SECONDS)
        with translated():
            try:
                async with asyncio.timeout(pause + LONGEST_WAIT_SECONDS):
                    await cast(Any, self._clients.blocking.brpop([keys.DOORBELL], timeout=pause))
            except TimeoutError as error:
                raise Unavailable("Redis does not answer a blocking call", part="redis") from error

    async def renew(self, worker_id: str, slots: int, claims: Sequence[Claim]) -> frozenset[str]:
        arguments: list[str | int] = [self._lease, worker_id, slots, JOB_PREFIX]
        for claim in claims:
            job = claim.job
            arguments += [job.run_id, job.generation, job.user_id, int(job.priority), keys.PENDING[job.priority]]
        return frozenset(await self._renew([keys.LEASES, keys.WORKERS], arguments))

    async def finish(self, claim: Claim, duration_seconds: float | None) -> None:
        duration = "" if duration_seconds is None else f"{duration_seconds:.3f}"
        names = [keys.job(claim.run_id), keys.LEASES, keys.DURATIONS]
        await self._finish(names, [claim.run_id, claim.generation, duration, FINISHED_JOB_SECONDS])

    async def release(self, claim: Claim, delay_seconds: float = 0.0) -> None:
        pending = keys.PENDING[claim.job.priority]
        names = [keys.job(claim.run_id), keys.LEASES, pending, keys.SCHEDULED, keys.DOORBELL]
        await self._release(names, [claim.run_id, claim.generation, int(delay_seconds * 1000)])

    async def forget(self, run_id: str) -> None:
        await self._forget([keys.job(run_id), keys.SCHEDULED, *keys.PENDING.values()], [run_id])

    async def reap(self, limit: int) -> Reaped:
        names = [keys.LEASES, keys.SCHEDULED, keys.WORKERS, keys.DOORBELL]
        lost, due = await self._reap(names, [limit, JOB_PREFIX])
        return Reaped(lost, due)

    async def known(self, run_ids: Sequence[str]) -> list[bool]:
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for run_id in run_ids:
                    pipeline.hget(keys.job(run_id), "state")
                return [state in ("queued", "running", "scheduled") for state in await pipeline.execute()]

    async def leave(self, worker_id: str) -> None:
        with translated():
            members = await cast(Any, self._redis.zrange(keys.WORKERS, 0, -1))
            own = [member for member in members if member.split("|")[0] == worker_id]
            if own:
                await self._redis.zrem(keys.WORKERS, *own)

    async def announce_cancel(self, run_id: str) -> None:
        with translated():
            await self._redis.publish(keys.CANCELS, run_id)

    @asynccontextmanager
    async def cancels(self) -> AsyncIterator[AsyncIterator[str]]:
        async with self._clients.pubsub() as pubsub:

            async def announced() -> AsyncIterator[str]:
                while True:
                    with suppress(Unavailable), translated():
                        await pubsub.subscribe(keys.CANCELS)
                        async for message in pubsub.listen():
                            if message["type"] == "message":
                                yield message["data"]
                    await asyncio.sleep(1)

            yield announced()

    async def statistics(self) -> Statistics:
        statistics, _ = await self._look(())
        return statistics

    async def standing(self, run_ids: Sequence[str]) -> list[Standing | None]:
        statistics, found = await self._look(run_ids)
        places = [found[start : start + len(keys.PENDING)] for start in range(0, len(found), len(keys.PENDING))]
        return [_standing(statistics, place) for place in places]

    async def _look(self, run_ids: Sequence[str]) -> tuple[Statistics, list[int | None]]:
        """The numbers, and for each run its index in each pending list: in one round trip."""
        with translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for name in keys.PENDING.values():
                    pipeline.llen(name)
                pipeline.zcard(keys.LEASES)
                pipeline.zcard(keys.SCHEDULED)
                pipeline.zrange(keys.WORKERS, 0, -1)
                pipeline.lrange(keys.DURATIONS, 0, -1)
                for run_id in run_ids:
                    for name in keys.PENDING.values():
                        pipeline.lpos(name, run_id)
                answers = await pipeline.execute()
        lengths, (running, scheduled, workers, durations), places = answers[:4], answers[4:8], answers[8:]
        statistics = Statistics(
            queued=dict(zip(keys.PENDING, lengths, strict=True)),
            running=running,
            scheduled=scheduled,
            workers=len(workers),
            slots=sum(int(worker.split("|")[1]) for worker in workers),
            run_seconds=fmean(map(float, durations)) if durations else self._initial_run_seconds,
        )
        return statistics, places


def _standing(statistics: Statistics, places: Sequence[int | None]) -> Standing | None:
    """`places`: the index from the left in each list, highest priority first. Lists are taken from the right."""
    before = 0
    for length, index in zip(statistics.queued.values(), places, strict=True):
        if index is not None:
            position = before + max(length - index, 1)
            return Standing(position, statistics.wait_seconds(position))
        before += length
    return None
