"""What an API pays that reaches Redis by REST: an enqueued run, and an event from its writer to who listens.

The same adapters on the same Redis, in turns: by a connection, and by a REST API before it, a small one in Python
(`tests/rest_front.py`) in a process of its own. So the difference is HTTP and JSON on one machine; a service elsewhere
adds its round trip.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backplane.domain.events import EventType, encode
from backplane.domain.runs import Priority
from backplane.logs.base import Batch
from backplane.process.supervisor import dies_with_parent
from backplane.queue.base import Job
from backplane.redis.client import RedisClients
from backplane.redis.rest import RestClients
from bench._result import Goal, report, spread
from tests.event_logs import make_known, redis_event_log
from tests.queues import redis_queue
from tests.rest_front import TOKEN
from tests.servers import RedisServer

JOBS, EVENTS, WARM_UP = 500, 500, 50
LONGEST_MS = 25.0
FRONT = """
import asyncio, sys
from tests.rest_front import rest_front
async def main():
    async with rest_front(sys.argv[1]) as front:
        print(front.url, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def enqueued(clients: RedisClients, name: str) -> list[float]:
    queue, took = redis_queue(clients), []
    for number in range(JOBS):
        began = time.perf_counter()
        await queue.enqueue([Job(f"{name}-{number}", "user", Priority.NORMAL)])
        took.append(time.perf_counter() - began)
    return took[WARM_UP:]


async def streamed(clients: RedisClients, writer: RedisClients, run_id: str) -> list[float]:
    """From the call that publishes, by a worker's connection, to what the API receives."""
    await make_known(writer, run_id)
    log, took = redis_event_log(writer), []
    async with redis_event_log(clients).subscription() as subscription:
        received = subscription.listen()
        first = asyncio.ensure_future(anext(received))
        await subscription.add(run_id)
        for number in range(1, EVENTS + 1):
            began = time.perf_counter()
            await log.append([Batch(run_id, 0, [encode(run_id, number, EventType.LOG, {"line": "x"})])])
            await (first if number == 1 else anext(received))
            took.append(time.perf_counter() - began)
    return took[WARM_UP:]


async def measure(redis_url: str, front_url: str) -> dict[str, dict[str, dict[str, float]]]:
    ways = {"connection": RedisClients(redis_url), "rest": RestClients(front_url, TOKEN)}
    found = {
        name: {
            "enqueue": spread(await enqueued(clients, name)),
            "event": spread(await streamed(clients, ways["connection"], name)),
        }
        for name, clients in ways.items()
    }
    for clients in ways.values():
        await clients.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        front = subprocess.Popen(
            dies_with_parent([sys.executable, "-c", FRONT, server.url]), stdout=subprocess.PIPE, text=True
        )
        try:
            assert front.stdout is not None
            found = asyncio.run(measure(server.url, front.stdout.readline().strip()))
        finally:
            front.kill()
            front.wait()
            server.kill()
    goals = [Goal(f"by REST: {what}, p50 in ms", found["rest"][what]["p50_ms"], LONGEST_MS) for what in found["rest"]]
    report("redis_rest", dict(found), goals)


if __name__ == "__main__":
    main()
