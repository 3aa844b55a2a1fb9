"""Workers that take tokens from one bucket as fast as they get them, in simulated time.

    python -m bench._bucket_workers REDIS WORKERS ZERO SPEED SECONDS
    python -m bench._bucket_workers REDIS WORKERS take|incrby CALLS

A process of its own, with a connection for each worker. The simulated clock is the machine's monotonic one since ZERO,
SPEED times as fast, the same in all processes. Each worker takes 2 tokens by estimate, has used 1 to 3 when it settles,
and takes again, until SECONDS have passed; prints {"used": tokens}. The second form takes, or counts with a bare
INCRBY, CALLS times over all workers, and prints {"seconds"}.
"""

import asyncio
import itertools
import json
import random
import sys
import time
import uuid
from collections.abc import Awaitable, Callable

import uvloop

from backplane.limits.buckets.base import Bucket
from backplane.limits.buckets.redis import RedisTokenBuckets
from backplane.redis.client import RedisClients

BUCKET = Bucket("bench", 10, 100)
ENDLESS = Bucket("endless", 1e9, 1e12)
ESTIMATE = 2
AGAIN_SECONDS = 1.0
"""Of simulated time: how soon the product asks again at the latest."""


async def simulate(buckets: RedisTokenBuckets, zero: float, speed: float, seconds: float) -> int:
    """Tokens that one worker used."""
    await asyncio.sleep(max(zero - time.monotonic(), 0))
    used, chance, now = 0, random.Random(), (time.monotonic() - zero) * speed
    while now < seconds:
        ticket, began = uuid.uuid4().hex, now
        while wait := await buckets.ask(ticket, now - began, [BUCKET], ESTIMATE, now=now):
            await asyncio.sleep(min(wait, AGAIN_SECONDS) / speed)
            now = (time.monotonic() - zero) * speed
            if now >= seconds:
                return used
        actual = chance.randint(1, 2 * ESTIMATE - 1)
        now = (time.monotonic() - zero) * speed
        await buckets.settle([BUCKET], ESTIMATE, actual, now=now)
        used += actual
    return used


async def timed(workers: int, calls: int, call: Callable[[], Awaitable[object]]) -> float:
    left = itertools.repeat(None, calls)

    async def work() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return time.perf_counter() - began


async def main(redis: str, workers: int, arguments: list[str]) -> None:
    clients = RedisClients(redis)
    buckets = RedisTokenBuckets(clients)
    match arguments:
        case ["take", calls]:
            numbers = itertools.count()
            seconds = await timed(workers, int(calls), lambda: buckets.ask(f"{next(numbers)}", 0, [ENDLESS], ESTIMATE))
            print(json.dumps({"seconds": seconds}))
        case ["incrby", calls]:

            async def count() -> None:
                async with clients.own_connection() as connection:
                    await connection.ask(("INCRBY", "bench:count", ESTIMATE))

            print(json.dumps({"seconds": await timed(workers, int(calls), count)}))
        case [zero, speed, seconds]:
            of_each = (simulate(buckets, float(zero), float(speed), float(seconds)) for _ in range(workers))
            print(json.dumps({"used": sum(await asyncio.gather(*of_each))}))
    await clients.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
