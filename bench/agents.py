"""Agents that live: messages a second, how soon a turn begins, and what agents cost while they do nothing.

A turn here does nothing but count. Beside it, on the same platform and in the same run, the same number of runs by a
handler that returns at once: what an agent adds to a run is its mailbox, its state and its place. Messages are sent by
several clients at once, by HTTP, and a message counts when its turn is over in the database. `python -m bench.agents
postgres` or `sqlite` measures one of the two.
"""

import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import redis
from sqlalchemy import text

from backplane.domain.agents import Pool
from backplane.process.supervisor import dies_with_parent
from backplane.resources import connect_store
from backplane.settings import Settings
from bench._platform import HOST, Platform, platform, stop
from bench._processes import cpu_seconds
from bench._result import Goal, report, spread

FOLDER = Path(__file__).parent
POOL = "counting_pool"
AGENTS = 1_000
SLEEPING = 9_000
"""With AGENTS, as many as one user may have."""
MESSAGES = 2_000
ONE_AGENT_MESSAGES = 300
LATENCY_MESSAGES = 100
CLIENTS = 8
WAIT_SECONDS = 180.0
IDLE_SECONDS = 10.0


class Database:
    """What the platform's database says, on one connection."""

    def __init__(self, started: Platform) -> None:
        self._settings = Settings(database_url=started.environment["DATABASE_URL"])

    def number(self, query: str) -> int:
        """The one number that the query gives."""
        return asyncio.run(self._number(query))

    async def _number(self, query: str) -> int:
        async with connect_store(self._settings) as store:
            return int(await store.database.read(lambda connection: connection.execute(text(query)).scalar_one()) or 0)

    def wait_until(self, query: str, least: int) -> None:
        asyncio.run(self._wait_until(query, least))

    async def _wait_until(self, query: str, least: int) -> None:
        async with connect_store(self._settings) as store:
            deadline = time.monotonic() + WAIT_SECONDS
            while time.monotonic() < deadline:
                found = await store.database.read(lambda connection: connection.execute(text(query)).scalar_one())
                if int(found or 0) >= least:
                    return
                await asyncio.sleep(0.02)
        raise RuntimeError(f"{query}: not {least} within {WAIT_SECONDS:g} s")


class Client:
    """One connection to the API, kept open."""

    def __init__(self, started: Platform) -> None:
        self._headers = started.headers
        self._connection = http.client.HTTPConnection(HOST, started.port, timeout=60)

    def post(self, path: str, **body: object) -> dict[str, object]:
        self._connection.request("POST", path, json.dumps(body), self._headers)
        response = self._connection.getresponse()
        answer: dict[str, object] = json.loads(response.read())
        if response.status >= 300:
            raise RuntimeError(f"{path} answers {response.status}: {answer}")
        return answer

    def message(self, agent_id: str) -> str:
        return str(self.post(f"/api/v1/agents/{agent_id}/messages", text="count")["run_id"])

    def close(self) -> None:
        self._connection.close()


def at_once(started: Platform, paths: Sequence[tuple[str, dict[str, object]]]) -> None:
    """Post all of these by several clients at once."""
    errors: list[BaseException] = []

    def work(number: int) -> None:
        client = Client(started)
        try:
            for path, body in paths[number::CLIENTS]:
                client.post(path, **body)
        except BaseException as error:
            errors.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def rate_of(started: Platform, database: Database, paths: Sequence[tuple[str, dict[str, object]]]) -> float:
    """Runs a second, from the first request to the end of the last run."""
    over = "SELECT count(*) FROM runs WHERE finished_at IS NOT NULL"
    before = database.number(over)
    began = time.perf_counter()
    at_once(started, paths)
    database.wait_until(over, before + len(paths))
    return len(paths) / (time.perf_counter() - began)


def messages_to(agents: Sequence[str], count: int) -> list[tuple[str, dict[str, object]]]:
    return [(f"/api/v1/agents/{agents[number % len(agents)]}/messages", {"text": "count"}) for number in range(count)]


def spawned(client: Client, count: int, first: int = 0) -> list[str]:
    path = f"/api/v1/agents/pools/{POOL}/agents"
    return [str(client.post(path, name=f"a-{number}")["agent_id"]) for number in range(first, first + count)]


@contextlib.contextmanager
def pool_processes(started: Platform, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    command = [sys.executable, "-m", "worker.pool", POOL]
    processes = [
        subprocess.Popen(dies_with_parent(command), env=started.environment, stdout=subprocess.DEVNULL)
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            stop(process)


def memory_kib(process: subprocess.Popen[bytes]) -> int:
    """Resident memory, without what the process shares with files."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError("this kernel does not say how much memory a process has")


def first_events(started: Platform, agents: Sequence[str]) -> list[float]:
    """Seconds from sending a message to the event that its turn is running, at a watcher of the run's stream."""
    seconds, client = [], Client(started)
    for agent in agents:
        began = time.perf_counter()
        run_id = client.message(agent)
        with contextlib.closing(started.connection()) as watching:
            watching.request("GET", f"/agent/logs/{run_id}/stream", headers=started.headers)
            response = watching.getresponse()
            for line in response:
                if b'"running"' in line:
                    seconds.append(time.perf_counter() - began)
                    break
            for line in response:
                if line.startswith(b"event: end"):
                    break
    client.close()
    return seconds


def create_pool(started: Platform) -> None:
    async def create() -> None:
        async with connect_store(Settings(database_url=started.environment["DATABASE_URL"])) as store:
            await store.agent_pools.put(
                Pool(POOL, "counting", datetime.now(UTC), agents_per_process=AGENTS, min_processes=0, max_processes=4)
            )

    asyncio.run(create())


def asleep(started: Platform, database: Database) -> dict[str, object]:
    """What 9,000 agents more cost that have no process: rows, memory of Redis, and CPU while nothing is done."""
    redis_client = redis.Redis(port=started.redis.port)
    pids = [process.pid for process in started.processes]

    def cpu_percent() -> float:
        before = cpu_seconds(pids)
        time.sleep(IDLE_SECONDS)
        return (cpu_seconds(pids) - before) / IDLE_SECONDS * 100

    idle, memory = cpu_percent(), int(redis_client.info("memory")["used_memory"])
    path = f"/api/v1/agents/pools/{POOL}/agents"
    began = time.perf_counter()
    at_once(started, [(path, {"name": f"asleep-{number}"}) for number in range(SLEEPING)])
    seconds = time.perf_counter() - began
    grown = int(redis_client.info("memory")["used_memory"]) - memory
    return {
        "agents": AGENTS + SLEEPING,
        "spawned_per_second": round(SLEEPING / seconds, 1),
        "redis_bytes_an_agent": round(grown / SLEEPING, 1),
        "cpu_percent_without_them": round(idle, 2),
        "cpu_percent_with_them": round(cpu_percent(), 2),
    }


def measured(kind: str) -> tuple[dict[str, object], list[Goal]]:
    values: dict[str, object] = {}
    started_with = platform(
        kind,
        ROLES_DIR=str(FOLDER / "_roles"),
        HANDLERS_FILE=str(FOLDER / "_empty_steps.py"),
        AGENT_LAUNCHER="none",
        RUN_LOG_LINES_PER_SECOND="0",
        QUEUE_MAX_WAITING="0",
        QUEUE_MAX_WAITING_ALL="0",
        USER_CONCURRENCY_STANDARD="0",
    )
    with started_with as started, contextlib.closing(Client(started)) as client:
        database = Database(started)
        create_pool(started)
        agents = spawned(client, AGENTS)
        plain: list[tuple[str, dict[str, object]]] = [
            ("/agent/execute", {"action": "run", "handler": "empty-steps", "input": 0}) for _ in range(MESSAGES)
        ]
        rate_of(started, database, plain[:100])
        handler = rate_of(started, database, plain)
        values["handler_runs_per_second"] = round(handler, 1)
        rates: dict[int, float] = {}
        waking: dict[str, float] = {}
        for count in (1, 4):
            with pool_processes(started, count) as processes:
                database.wait_until("SELECT count(*) FROM agent_processes", count)
                if count == 1:
                    before = memory_kib(processes[0])
                    some = agents[:LATENCY_MESSAGES]
                    waking = spread(first_events(started, some))
                    values["asleep"] = waking
                    values["idle"] = spread(first_events(started, some))
                rate_of(started, database, messages_to(agents, AGENTS))  # places them all
                one = rate_of(started, database, messages_to(agents[:1], ONE_AGENT_MESSAGES))
                rates[count] = rate_of(started, database, messages_to(agents, MESSAGES))
                values[f"{count}_processes"] = {
                    "messages_per_second_of_one_agent": round(one, 1),
                    f"messages_per_second_of_{AGENTS}_agents": round(rates[count], 1),
                }
                if count == 1:
                    values["memory_kib_a_placed_agent"] = round((memory_kib(processes[0]) - before) / AGENTS, 1)
        values["sleeping"] = asleep(started, database)
    return values, [
        Goal(f"{kind}: turns/s of {AGENTS} agents to runs/s of a handler", round(rates[1] / handler, 2), 0.8, True),
        Goal(f"{kind}: p50 from a message to the begin of its turn, asleep, ms", waking["p50_ms"], 100.0),
    ]


def main() -> None:
    values: dict[str, object] = {}
    goals: list[Goal] = []
    for kind in sys.argv[1:] or ("postgres", "sqlite"):
        values[kind], of_kind = measured(kind)
        goals += of_kind
    report("agents", values, goals)


if __name__ == "__main__":
    main()
