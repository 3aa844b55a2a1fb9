"""What a claim costs a worker that serves 1, 20 and 200 queues, with 10, 1,000 and 100,000 runs waiting in them.

As `bench.growth`, whose lines these are: five runs are claimed, settled and replaced by five others, each line in turns
with the others. Each run is of another queue than the one before, the dearest case. The goals are ratios: 200 queues
to the default one alone, with as many runs waiting; and with 200 queues, 100,000 runs waiting to 10.
"""

import contextlib
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median

import uvloop

from backplane.domain.runs import DEFAULT_QUEUE
from backplane.redis.client import RedisClients
from bench._result import Goal, report
from bench.growth import CLAIMS_A_ROUND, ROUNDS, WAITING, Line
from tests.servers import RedisServer

QUEUES = (1, 20, 200)
GOAL = 1.5
SEVERAL_GOAL = 2.5
"""To a worker of the default queue alone, which takes all its runs by one command."""
CLAIM = ("claim, Redis", "claim, client")
Measured = dict[int, dict[int, dict[str, float]]]


async def measure(url: str) -> Measured:
    """Seconds by the number of queues, by the number of runs that wait, by what; medians."""
    async with contextlib.AsyncExitStack() as stack:
        lines: dict[tuple[int, int], Line] = {}
        for count in QUEUES:
            queues = (DEFAULT_QUEUE, *(f"queue-{number}" for number in range(1, count)))
            for waiting in WAITING:
                clients = RedisClients(url, prefix=f"{count}-{waiting}:")
                stack.push_async_callback(clients.close)
                lines[count, waiting] = Line(clients, waiting, 1, False, queues)
                await lines[count, waiting].fill()
        rounds: dict[tuple[int, int], list[dict[str, float]]] = defaultdict(list)
        for _ in range(ROUNDS):
            for _ in range(CLAIMS_A_ROUND):
                for line in lines.values():
                    await line.turn()
            for key, line in lines.items():
                rounds[key].append(line.round_ends())
    return {
        count: {
            waiting: {what: median(one[what] for one in rounds[count, waiting]) for what in rounds[count, waiting][0]}
            for waiting in WAITING
        }
        for count in QUEUES
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="agent-bench-") as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        try:
            measured = uvloop.run(measure(server.url))
        finally:
            server.stop()
    most = measured[QUEUES[-1]]
    goals = []
    for what in CLAIM:
        to_one, to_twenty = (
            max(most[waiting][what] / measured[count][waiting][what] for waiting in WAITING) for count in QUEUES[:2]
        )
        by_waiting = most[WAITING[-1]][what] / most[WAITING[0]][what]
        goals.append(Goal(f"{what}, 200 queues to 1", round(to_one, 2), SEVERAL_GOAL))
        goals.append(Goal(f"{what}, 200 queues to 20", round(to_twenty, 2), GOAL))
        goals.append(Goal(f"{what}, 200 queues, 100,000 waiting to 10", round(by_waiting, 2), GOAL))
    values = {
        f"{count} queues": {
            waiting: {what: round(seconds * 1e6) for what, seconds in found.items()} for waiting, found in of.items()
        }
        for count, of in measured.items()
    }
    report("named_queues", {"unit": "µs", **values}, goals)


if __name__ == "__main__":
    main()
