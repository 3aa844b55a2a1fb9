"""What a claim costs with 10, 1,000 and 100,000 runs waiting, of one user and of a thousand, all of them free to be
taken or half of them parked because their users are over the cap.

The three queues lie in one Redis under different prefixes and are measured in turns: five runs are claimed, settled and
replaced by five others, so that the number that waits stays. Redis's own time is what INFO commandstats says of the
call; the client's is until the answer is there. A run's standing (its position) is asked for beside it.
"""

import contextlib
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import uvloop

from backplane.domain.runs import DEFAULT_QUEUE, Priority, RunStatus
from backplane.queue.base import Caps, Job, QueueRoom, RunOutcome, Settlement
from backplane.queue.redis import RedisQueue
from backplane.redis.client import RedisClients
from bench._contest import PERSISTENCE
from bench._result import Goal, report
from tests.servers import RedisServer

WAITING = (10, 1_000, 100_000)
USERS = (1, 1_000)
CLAIMED = 5
ROUNDS = 5
CLAIMS_A_ROUND = 60
FILLED_AT_ONCE = 500
GOAL = 1.5
WORKER = "bench-worker"
NUMBERS = itertools.count()


@dataclass
class Line:
    """So many runs waiting, one after the other in each of these queues; with a cap, half of each user's."""

    clients: RedisClients
    waiting: int
    users: int
    capped: bool
    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    made: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        # Each user has at least two runs, so that one can be over the cap.
        self.users = min(self.users, self.waiting // 2)
        cap = self.waiting // self.users // 2 if self.capped else 0
        self.queue = RedisQueue(
            self.clients,
            lease_seconds=60.0,
            initial_run_seconds=120.0,
            ageing_seconds=60.0,
            caps=Caps(user=dict.fromkeys(Priority, cap)),
            room=QueueRoom(),
        )

    async def fill(self) -> None:
        while self.made < self.waiting:
            count = min(FILLED_AT_ONCE, self.waiting - self.made)
            await self.queue.enqueue([self._job(f"user-{(self.made + i) % self.users}") for i in range(count)])
            self.made += count
        depths = [depth for found in await self.queue.depths() for depth in found.by_priority.values()]
        parked = sum(depth.parked for depth in depths)
        waiting = parked + sum(depth.waiting for depth in depths)
        if waiting != self.waiting or parked != (self.waiting // 2 if self.capped else 0):
            raise RuntimeError(f"{waiting} runs wait, {parked} of them parked")

    def _job(self, user: str) -> Job:
        number = next(NUMBERS)
        return Job(f"run-{number:032d}", user, Priority.NORMAL, queue=self.queues[number % len(self.queues)])

    async def turn(self) -> None:
        claims = await self._timed("claim", self.queue.claim(WORKER, CLAIMED, queues=self.queues))
        if len(claims) != CLAIMED:
            raise RuntimeError(f"{len(claims)} runs were claimed")
        settlements = [Settlement(claim, RunOutcome.FINISHED, RunStatus.COMPLETED) for claim in claims]
        await self._timed("settle", self.queue.settle(settlements))
        jobs = [self._job(claim.job.user_id) for claim in claims]
        await self._timed("enqueue", self.queue.enqueue(jobs))
        # The last of all: where it stands, and what it costs to see it.
        await self._timed("standing", self.queue.standing([jobs[-1].run_id]))

    async def _timed(self, what: str, call: Any) -> Any:
        before, began = await self._script_seconds(), time.perf_counter()
        answer = await call
        took = time.perf_counter() - began
        self.seconds[f"{what}, client"].append(took)
        self.seconds[f"{what}, Redis"].append(await self._script_seconds() - before)
        return answer

    async def _script_seconds(self) -> float:
        found = await cast(Any, self.clients.commands.info("commandstats"))
        return float(found.get("cmdstat_evalsha", {}).get("usec", 0)) / 1e6

    def round_ends(self) -> dict[str, float]:
        ended = {what: median(seconds) for what, seconds in self.seconds.items()}
        self.seconds.clear()
        return ended


async def measure(url: str, users: int, capped: bool) -> dict[int, dict[str, float]]:
    """Seconds by number waiting, then by what; medians."""
    async with contextlib.AsyncExitStack() as stack:
        lines = []
        for waiting in WAITING:
            clients = RedisClients(url, prefix=f"{users}-{capped}-{waiting}:")
            stack.push_async_callback(clients.close)
            lines.append(Line(clients, waiting, users, capped))
            await lines[-1].fill()
        rounds: dict[int, list[dict[str, float]]] = {waiting: [] for waiting in WAITING}
        for _ in range(ROUNDS):
            for _ in range(CLAIMS_A_ROUND):
                for line in lines:
                    await line.turn()
            for line in lines:
                rounds[line.waiting].append(line.round_ends())
        await cast(Any, lines[0].clients.commands.flushall())
    return {
        waiting: {what: median(one[what] for one in found) for what in found[0]} for waiting, found in rounds.items()
    }


def growths(measured: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """From the fewest to the most that wait."""
    return {what: round(seconds / measured[WAITING[0]][what], 2) for what, seconds in measured[WAITING[-1]].items()}


def main() -> None:
    values: dict[str, object] = {"claimed at once": CLAIMED, "unit": "µs"}
    goals: list[Goal] = []
    for persistence in PERSISTENCE:
        worst: dict[str, float] = defaultdict(float)
        with tempfile.TemporaryDirectory(prefix="agent-bench-") as folder:
            server = RedisServer(Path(folder) / "redis", keeps_data=persistence == "aof", appendfsync="everysec")
            server.start()
            try:
                for users in USERS:
                    for capped in (False, True):
                        measured = uvloop.run(measure(server.url, users, capped))
                        name = f"{persistence}, users {users}, {'half over the cap' if capped else 'no cap'}"
                        values[name] = {
                            waiting: {what: round(seconds * 1e6) for what, seconds in found.items()}
                            for waiting, found in measured.items()
                        }
                        for what, growth in growths(measured).items():
                            worst[what] = max(worst[what], growth)
            finally:
                server.stop()
        goals += [
            Goal(f"{persistence}: {what}, 100,000 waiting to 10", worst[what], GOAL)
            for what in ("claim, Redis", "claim, client", "settle, Redis", "standing, Redis")
        ]
    report("growth", values, goals)


if __name__ == "__main__":
    main()
