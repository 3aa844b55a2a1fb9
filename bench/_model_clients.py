"""Runs of several users at one worker, each calling the model server again and again by the worker's own gateway.

    python -m bench._model_clients PORT SECONDS REDIS SLOTS USERS

USERS is JSON, [[user, runs here, milliseconds of a call]]. SLOTS 0: nobody waits for a slot, which is the bare limit.
A process of its own. After SECONDS it begins no more calls, and prints {user: [seconds that each of its calls waited]}
of the calls that got their slot in the second half of that time.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict

import uvloop

from backplane.limits.buckets.redis import RedisTokenBuckets
from backplane.limits.slots.redis import RedisSlots
from backplane.process.metrics import process_registry
from backplane.redis.client import RedisClients
from backplane.settings import Settings, fixed
from bench._model_server import HOST
from worker.llm.base import Message, ModelRequest
from worker.llm.gateway import ModelGateway, open_gateway
from worker.metrics import WorkerMetrics


class Runs:
    def __init__(self, gateway: ModelGateway, seconds: float) -> None:
        self._gateway = gateway
        now = time.perf_counter()
        self._counts_from, self._ends = now + seconds / 2, now + seconds
        self.waits: defaultdict[str, list[float]] = defaultdict(list)

    async def run(self, user: str, name: str, milliseconds: float) -> None:
        [candidate] = self._gateway.models.candidates(None)
        request = ModelRequest([Message("user", str(milliseconds))], max_output_tokens=10)
        while (began := time.perf_counter()) < self._ends:
            async with self._gateway.turn(candidate, user, name, name, lambda _: None):
                got = time.perf_counter()
                if got >= self._ends:
                    return
                if got >= self._counts_from:
                    self.waits[user].append(got - began)
                await self._gateway.complete(candidate, request, lambda _: None)


async def main(port: int, seconds: float, redis: str, parallel: int, users: list[tuple[str, int, float]]) -> None:
    server = {"kind": "openai", "url": f"http://{HOST}:{port}", "slots": parallel, "max_loaded": 1}
    settings = Settings(model="simulated/model", model_servers={"simulated": server})
    clients = RedisClients(redis)
    slots = RedisSlots(clients, lease_seconds=fixed.MODEL_SLOT_LEASE_SECONDS, turn_seconds=fixed.MODEL_TURN_SECONDS)
    listening = asyncio.create_task(slots.run())
    async with open_gateway(settings, slots, RedisTokenBuckets(clients), WorkerMetrics(process_registry())) as gateway:
        runs = Runs(gateway, seconds)
        async with asyncio.TaskGroup() as tasks:
            for user, count, milliseconds in users:
                for number in range(count):
                    tasks.create_task(runs.run(user, f"{user}-{number}", milliseconds))
    listening.cancel()
    await clients.close()
    print(json.dumps(runs.waits))


if __name__ == "__main__":
    uvloop.run(
        main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5])),
    )
