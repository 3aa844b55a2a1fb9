"""Agents as users of the API see them, and the processes of their pools, played by the test."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from backplane.domain.events import EventType
from backplane.domain.runs import RunError, RunStatus
from backplane.run_actions.pushing import push_again
from backplane.store import RunTransaction
from tests.integration.api.running import LONGEST_WAIT_SECONDS, Api, Person, WorkerByHand
from tests.queues import finish

AGENTS = "/api/v1/agents"
POOL = "developer_pool"


async def spawn(person: Person, name: str = "ada", pool: str = POOL, **fields: Any) -> str:
    """The id of a new agent."""
    answer = await person.http.post(f"{AGENTS}/pools/{pool}/agents", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    agent_id: str = answer.json()["agent_id"]
    return agent_id


async def send(person: Person, agent_id: str, text: str = "hello", **fields: Any) -> Any:
    """The message as the API answers it."""
    answer = await person.http.post(f"{AGENTS}/{agent_id}/messages", json={"text": text, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


async def act(person: Person, agent_id: str, action: str, **options: bool) -> httpx.Response:
    query = {name: str(value).lower() for name, value in options.items()}
    return await person.http.post(f"{AGENTS}/{agent_id}/{action}", params=query)


async def show(person: Person, agent_id: str) -> Any:
    answer = await person.http.get(f"{AGENTS}/{agent_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def explain(person: Person, agent_id: str) -> Any:
    answer = await person.http.get(f"{AGENTS}/{agent_id}/explain")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def process(api: Api, pool: str = POOL, **values: Any) -> str:
    """The id of a process of the pool that has just started."""
    settled = {"node": "node", "ranges": None, "capacity": 10, "lease_seconds": 600.0}
    started = await api.resources.store.agent_processes.register(uuid4().hex, pool, **{**settled, **values})
    return started.id


class TurnByHand:
    """A turn that the test carries out in place of a process."""

    def __init__(self, api: Api, worker: WorkerByHand, agent_id: str) -> None:
        self._api = api
        self.worker = worker
        self._agent_id = agent_id

    async def answer(self, value: Any = "done", status: RunStatus = RunStatus.COMPLETED) -> None:
        """End it: the agent's next message is opened by that."""
        store = self._api.resources.store
        error = RunError("handler_failed", "it went wrong") if status is RunStatus.FAILED else None
        ends = [self.worker.number(kind, {"status": status}) for kind in (EventType.STATUS, EventType.END)]

        def write(transaction: RunTransaction) -> None:
            transaction.add_events(ends)
            transaction.finish(status, error, result={"summary": None, "files": [], "cost": _COST, "value": value})
            transaction.end_turn(self._agent_id)

        await store.running_runs.write(self.worker.run_id, self.worker.claim.generation, write)
        await self.worker.publish(ends, stored=True)
        await finish(self._api.resources.queue, self.worker.claim, 1.0)
        agent = await store.agents.find(self._agent_id)
        if agent is not None and agent.open_run_id is not None:
            await push_again(store, self._api.resources.queue, self._api.resources.event_log, agent.open_run_id)


_COST = {"input_tokens": 0, "output_tokens": 0, "usd": 0.0, "model_calls": 0, "seconds": 0.0}


async def turn(api: Api, agent_id: str) -> TurnByHand:
    """Take the agent's next message from its queue."""
    queue = api.resources.queue
    [claim] = await queue.claim("by-hand", 1, 5.0, queues=[f"agent:{agent_id}"])
    return TurnByHand(api, await WorkerByHand.take(api.resources, claim), agent_id)


@dataclass(frozen=True, slots=True)
class TurnFrame:
    """A frame of an agent's stream. A comment, and what has no id, is passed over."""

    cursor: str
    type: str
    run_id: str
    data: Any


@asynccontextmanager
async def agent_stream(
    person: Person, agent_id: str, *, after: str | None = None, last_event_id: str | None = None
) -> AsyncIterator[AsyncIterator[TurnFrame]]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    parameters = {"after": after} if after else {}
    path = f"{AGENTS}/{agent_id}/stream"
    async with (
        asyncio.timeout(LONGEST_WAIT_SECONDS),
        person.http.stream("GET", path, headers=headers, params=parameters) as response,
    ):
        assert response.status_code == 200, await response.aread()

        async def published() -> AsyncIterator[TurnFrame]:
            rest = b""
            async for chunk in response.aiter_raw():
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
                    if "id" in fields:
                        body = json.loads(fields.get("data", '{"run_id": "", "data": null}'))
                        yield TurnFrame(fields["id"], fields.get("event", ""), body["run_id"], body["data"])

        yield published()


async def take(stream: AsyncIterator[TurnFrame], count: int) -> list[TurnFrame]:
    """The next ones."""
    seen: list[TurnFrame] = []
    async for frame in stream:
        seen.append(frame)
        if len(seen) == count:
            return seen
    raise AssertionError(f"the stream ended after {seen}")
