"""The least that hands a job over: LPUSH here, BRPOP there, one by one. A worker that dies loses its job."""

import json
import sys
from collections.abc import Sequence
from typing import Any, cast

import redis.asyncio
import uvloop

from bench._queues._program import body, marks, nothing, produce, redis_url

LIST = "bare:list"


def connect() -> Any:
    """One connection, as nobody shares it: a pool would cost every command."""
    return cast(Any, redis.asyncio.Redis.from_url(redis_url(), single_connection_client=True))


async def work() -> None:
    seen = marks()
    async with connect() as client:
        while True:
            _, text = await client.brpop(LIST)
            seen.mark(json.loads(text)["job"])


def main() -> None:
    if sys.argv[1] == "work":
        uvloop.run(work())
        return
    client = connect()

    async def one(job: int) -> None:
        await client.lpush(LIST, json.dumps(body(job)))

    async def batch(jobs: Sequence[int]) -> None:
        await client.lpush(LIST, *(json.dumps(body(job)) for job in jobs))

    produce(one, batch, nothing, client.aclose)


if __name__ == "__main__":
    main()
