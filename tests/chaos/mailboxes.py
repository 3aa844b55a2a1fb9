"""Agents that send one another messages while everything breaks: `python -m tests.chaos.mailboxes --seed 7`.

Processes of a pool, a controller and an API are killed, stopped, drained and cut off, and Redis is emptied. Agents pass
messages on in rings and trees, ask one another, are paused and go on. When all is over, no message may be lost, sent
twice or answered out of order, and each agent's state is the sum of its messages (`tests.chaos.messages`). The facts
come from the database; one JSON line gives counts and complaints, and the exit status is 1 when there are any.
"""

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvloop
from sqlalchemy import func, select

from backplane.domain.agents import Pool
from backplane.errors import Unavailable
from backplane.resources import Resources
from backplane.store.agents.tables import agents as agents_table
from backplane.store.tables import runs as runs_table
from tests.chaos.chaos_platform import LEASE_SECONDS, Part, Platform, Servers, running_platform, running_servers, within
from tests.chaos.faults import Fault, schedule
from tests.chaos.messages import KeptMessage, MailboxFacts, PlannedMessage, complaints_about, token

POOL = "relay_pool"
AGENTS_PER_PROCESS = 12
SETTINGS = {"ROLES_DIR": str(Path(__file__).with_name("roles")), "AGENT_LAUNCHER": "none"}


@dataclass(frozen=True)
class MailboxScenario:
    """`tokens` are sent spread over `seconds`; ten to sixty messages follow from each. `recover_seconds`: how long
    after the last fault everything may still take."""

    seed: int
    tokens: int
    seconds: float
    faults: Sequence[Fault]
    agents: int = 20
    oracles: int = 4
    processes: int = 3
    recover_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class MailboxOutcome:
    facts: MailboxFacts
    counts: dict[str, Any]


async def run_mailboxes(scenario: MailboxScenario, servers: Servers, folder: Path) -> MailboxOutcome:
    parts = [
        Part(f"process {number}", ("worker.pool", POOL), claims=False) for number in range(1, scenario.processes + 1)
    ]
    parts.append(Part("controller", ("controller",), claims=False))
    with ThreadPoolExecutor(1, thread_name_prefix="servers") as thread:
        async with running_platform(servers, folder, thread, parts, SETTINGS, _make_pool) as platform:
            return await MailboxDriver(scenario, platform).run()


async def _make_pool(resources: Resources) -> None:
    pool = Pool(POOL, "relay", datetime.now(UTC), agents_per_process=AGENTS_PER_PROCESS)
    await resources.store.agent_pools.put(pool)


class MailboxDriver:
    def __init__(self, scenario: MailboxScenario, platform: Platform) -> None:
        self._scenario = scenario
        self._platform = platform
        self._draw = random.Random(f"{scenario.seed} mailboxes")
        self._relays = [f"relay-{number}" for number in range(scenario.agents)]
        self._oracles = [f"oracle-{number}" for number in range(scenario.oracles)]
        self._ids: dict[str, str] = {}
        self._repeated = 0
        self._pauses = 0

    async def run(self) -> MailboxOutcome:
        scenario = self._scenario
        if not await within(90.0, self._processes_are_there):
            raise RuntimeError(f"the processes of the pool did not start; their logs are in {self._platform.folder}")
        for name in (*self._relays, *self._oracles):
            agent = await self._post(f"/api/v1/agents/pools/{POOL}/agents", {"name": name})
            self._ids[name] = agent["agent_id"]
        planned = tuple(token(number, self._relays, self._oracles, self._draw) for number in range(scenario.tokens))
        expected = sum(1 for one in planned for _ in one.all())
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._platform.injector.inflict_all(scenario.faults))
            tasks.create_task(self._pause_agents())
            for number, one in enumerate(planned):
                tasks.create_task(self._send(one, scenario.seconds * number / len(planned)))
        faults_over = time.monotonic()

        async def are_over() -> bool:
            with suppress(Unavailable):
                return await self._finished() >= expected
            return False

        await within(scenario.recover_seconds, are_over)
        recovered = time.monotonic()
        facts = MailboxFacts(planned, await self._kept(), await self._states())
        for process in self._platform.processes:
            await process.end()
        return MailboxOutcome(
            facts,
            {
                "seed": scenario.seed,
                "tokens": len(planned),
                "messages": expected,
                "statuses": dict(Counter(message.status for message in facts.kept)),
                "calls_repeated": self._repeated,
                "pauses": self._pauses,
                "faults": dict(self._platform.injector.done),
                "chaos_seconds": round(faults_over - began, 1),
                "recovery_seconds": round(recovered - faults_over, 1),
            },
        )

    async def _processes_are_there(self) -> bool:
        pools = (await self._platform.http.get("/api/v1/agents/pools")).json()["pools"]
        return any(pool["pool_name"] == POOL and pool["process_count"] >= self._scenario.processes for pool in pools)

    async def _send(self, message: PlannedMessage, after_seconds: float) -> None:
        await asyncio.sleep(after_seconds)
        body = {"text": message.place, "data": message.data()}
        await self._post(f"/api/v1/agents/{self._ids[message.agent]}/messages", body, key=message.place)

    async def _pause_agents(self) -> None:
        """Now and then an agent is paused for a moment, as long as there are faults."""
        ends = time.monotonic() + self._scenario.seconds
        while time.monotonic() < ends:
            agent_id = self._ids[self._draw.choice(self._relays)]
            await self._post(f"/api/v1/agents/{agent_id}/pause", {})
            await asyncio.sleep(self._draw.uniform(0.1, 2.0))
            await self._post(f"/api/v1/agents/{agent_id}/resume", {})
            self._pauses += 1
            await asyncio.sleep(self._draw.uniform(0.1, 2.0))

    async def _post(self, path: str, body: Mapping[str, Any], key: str = "") -> dict[str, Any]:
        """Ask until it is done, as a client does."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            with suppress(httpx.TransportError):
                answer = await self._platform.http.post(path, json=body, headers=headers)
                if answer.is_success:
                    return dict(answer.json())
                if answer.status_code < 500 and answer.status_code not in (409, 429):
                    raise AssertionError(f"{path} was refused: {answer.status_code} {answer.text}")
            self._repeated += 1
            await asyncio.sleep(0.2)

    async def _finished(self) -> int:
        query = select(func.count()).where(runs_table.c.agent_id.is_not(None), runs_table.c.finished_at.is_not(None))
        database = self._platform.direct.store.database
        return int(await database.read(lambda connection: connection.execute(query).scalar_one()))

    async def _kept(self) -> tuple[KeptMessage, ...]:
        columns = runs_table.c
        query = select(
            columns.id, columns.turn, columns.status, columns.prompt, columns.result, columns.error, agents_table.c.name
        ).join(agents_table, agents_table.c.id == columns.agent_id)
        database = self._platform.direct.store.database
        rows = await database.read(lambda connection: connection.execute(query).all())
        return tuple(
            KeptMessage(
                run_id=row.id,
                agent=row.name,
                turn=row.turn,
                place=row.prompt,
                status=row.status,
                count=((row.result or {}).get("value") or {}).get("count"),
                error=str(row.error or ""),
            )
            for row in rows
        )

    async def _states(self) -> dict[str, dict[str, Any]]:
        query = select(agents_table.c.name, agents_table.c.state)
        database = self._platform.direct.store.database
        rows = await database.read(lambda connection: connection.execute(query).all())
        return {row.name: row.state for row in rows}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mailboxes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of messages and faults")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long faults are injected")
    parser.add_argument("--tokens", type=int, default=1500, help="each of ten to some sixty messages")
    parser.add_argument("--processes", type=int, default=3, help="of the pool")
    parser.add_argument("--recover", type=float, default=120.0, help="seconds after that until all must be answered")
    parser.add_argument("--calm", action="store_true", help="without faults")
    arguments = parser.parse_args()
    faults = [] if arguments.calm else schedule(arguments.seed, arguments.seconds, LEASE_SECONDS)
    scenario = MailboxScenario(
        arguments.seed,
        arguments.tokens,
        arguments.seconds,
        faults,
        processes=arguments.processes,
        recover_seconds=arguments.recover,
    )
    folder = Path(tempfile.mkdtemp(prefix="agent-chaos-"))
    folder.chmod(0o755)
    (folder / "platform").mkdir()
    with running_servers(folder) as servers:
        outcome = uvloop.run(run_mailboxes(scenario, servers, folder / "platform"))
    complaints = [str(complaint) for complaint in complaints_about(outcome.facts)]
    print(json.dumps({**outcome.counts, "complaints": complaints, **({"folder": str(folder)} if complaints else {})}))
    if not complaints:
        shutil.rmtree(folder)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
