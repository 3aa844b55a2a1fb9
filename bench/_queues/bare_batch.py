"""The least that takes jobs in batches and cannot lose them: a hash, a list and one script each for claim and
acknowledgement, on redis-py's asyncio client. No priorities, caps, generations, retries or reaper.

A claim takes up to CLAIM jobs with their leases; their acknowledgements go in one pipeline, one script call a job.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import uvloop

from bench._queues._program import body, marks, nothing, produce
from bench._queues.bare_list import connect

JOBS, WAITING, LEASES = "bare:jobs", "bare:waiting", "bare:leases"
CLAIM = 50
LEASE_MS = 15_000
IDLE_SECONDS = 0.005

# KEYS: waiting, leases, jobs. ARGV: how many, lease in ms. Answers ids and bodies, taking turns.
TAKE = """
local ids = redis.call('RPOP', KEYS[1], ARGV[1])
if not ids then return {} end
local time = redis.call('TIME')
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
local leases, taken = {}, {}
local bodies = redis.call('HMGET', KEYS[3], unpack(ids))
for i, id in ipairs(ids) do
  leases[2 * i - 1], leases[2 * i] = ends, id
  taken[2 * i - 1], taken[2 * i] = id, bodies[i]
end
redis.call('ZADD', KEYS[2], unpack(leases))
return taken
"""
# KEYS: leases, jobs. ARGV: id.
ACKNOWLEDGE = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
return redis.call('HDEL', KEYS[2], ARGV[1])
"""


async def work() -> None:
    async with connect() as client:
        take, acknowledge = await client.script_load(TAKE), await client.script_load(ACKNOWLEDGE)
        seen = marks()
        while True:
            taken = await client.evalsha(take, 3, WAITING, LEASES, JOBS, CLAIM, LEASE_MS)
            if not taken:
                await asyncio.sleep(IDLE_SECONDS)
                continue
            for text in taken[1::2]:
                await _no_op(seen.mark, text)
            async with client.pipeline(transaction=False) as pipeline:
                for job in taken[::2]:
                    pipeline.evalsha(acknowledge, 2, LEASES, JOBS, job)
                await pipeline.execute()


async def _no_op(mark: Any, text: bytes) -> None:
    mark(json.loads(text)["job"])


def main() -> None:
    if sys.argv[1] == "work":
        uvloop.run(work())
        return
    client = connect()

    async def batch(jobs: Sequence[int]) -> None:
        async with client.pipeline(transaction=False) as pipeline:
            for job in jobs:
                pipeline.hset(JOBS, str(job), json.dumps(body(job)))
                pipeline.lpush(WAITING, str(job))
            await pipeline.execute()

    async def one(job: int) -> None:
        await batch([job])

    produce(one, batch, nothing, client.aclose)


if __name__ == "__main__":
    main()
