"""The whole of it: start the platform, give it runs and watchers, break things, wait, stop it, write down what is left.

Nothing here judges: `run_chaos` gives the facts for `checker.check`, and counts. Runs are submitted as clients do it,
over HTTP with an idempotency key, until they are accepted. Where a run waits because a step may or may not have
happened, the driver looks for its mark, as a person would, and answers.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import redis.asyncio
from sqlalchemy import select

from backplane.domain.events import decode
from backplane.domain.runs import Run, RunStatus
from backplane.errors import NotFound, Unavailable
from backplane.redis.declared_keys import KEYS
from backplane.store.tables import events as events_table
from backplane.store.tables import runs as runs_table
from tests.chaos import marks, processes
from tests.chaos.chaos_platform import LEASE_SECONDS, Part, Platform, Servers, running_platform, within
from tests.chaos.checker import Event, Facts, Leftovers, PlannedStep, RunFacts
from tests.chaos.faults import EMPTYING, Fault
from tests.chaos.watchers import Watcher, event_of

ANSWER_SECONDS = 1.0
"""A person does not answer sooner; longer than a mark can be on its way."""
MAY_NAME_WHAT_IS_OVER = frozenset({"jobs:finished", "jobs:dead", "jobs:doorbell"})


@dataclass(frozen=True)
class Scenario:
    """`submit_seconds`: over how long the runs are handed in. `recover_seconds`: how long after the last fault
    everything may still take. `step_seconds`: what a step that marks takes before its mark, and again after it, is one
    of these. `settings`: of the platform, above those of PLATFORM. `clock_off_seconds`: of the first
    worker's host, from the start. `marks_twice`, `drops_frame`: the sabotage (see worker_with_marks, watchers)."""

    seed: int
    runs: int
    workers: int
    faults: Sequence[Fault]
    submit_seconds: float
    recover_seconds: float = 60.0
    watchers_per_run: int = 2
    cancels_per_run: float = 0.05
    step_seconds: tuple[float, ...] = (0.0, 0.05, 0.2, 0.6)
    settings: Mapping[str, str] = field(default_factory=dict)
    clock_off_seconds: float = 0.0
    marks_twice: str = ""
    drops_frame: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    facts: Facts
    counts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Submitted:
    label: str
    run_id: str
    plan: tuple[dict[str, Any], ...]
    is_cancelled: bool


async def run_chaos(scenario: Scenario, servers: Servers, folder: Path) -> Outcome:
    """`servers` run already; what the faults stop is running again at the end. `folder` is empty, and readable by
    all. Raises RuntimeError when the platform does not come up in the first place."""
    parts = [
        Part(
            f"worker {number}",
            ("tests.chaos.worker_with_marks",),
            {
                # The first worker serves the default queue alone, where there are others.
                "WORKER_QUEUES": "default" if number == 1 < scenario.workers else "side,default",
                "CHAOS_MARKS": str(folder / "marks"),
                "CHAOS_MARK_TWICE": scenario.marks_twice,
            },
            clock_off_seconds=scenario.clock_off_seconds if number == 1 else 0.0,
        )
        for number in range(1, 1 + scenario.workers)
    ]
    settings = {"HANDLERS_FILE": str(Path(__file__).with_name("carried_out_by_handler.py")), **scenario.settings}
    with ThreadPoolExecutor(1, thread_name_prefix="servers") as thread:
        async with running_platform(servers, folder, thread, parts, settings) as platform:
            return await Driver(scenario, platform).run()


# --- runs ---


def plan_of(label: str, draw: random.Random, step_seconds: Sequence[float]) -> tuple[dict[str, Any], ...]:
    """Two to five steps, of which at least the first leaves a mark outside."""
    kinds = ["mark", *draw.choices(("mark", "repeatable", "file", "shell"), (5, 2, 3, 1), k=draw.randint(1, 4))]
    return tuple(
        _step(label, f"s{number}-{kind}", kind, draw, step_seconds) for number, kind in enumerate(kinds, start=1)
    )


def _step(label: str, id: str, kind: str, draw: random.Random, step_seconds: Sequence[float]) -> dict[str, Any]:
    if kind == "file":
        return {"id": id, "tool": "file_write", "arguments": {"path": id, "content": f"{label} {id}\n"}}
    if kind == "shell":
        return {"id": id, "tool": "shell", "arguments": {"script": f"echo {label} {id} >> {id}"}}
    seconds, lines = draw.choice(step_seconds), draw.choice((0, 3, 40))
    arguments = {"run": label, "step": id, "seconds": seconds, "lines": lines}
    return {"id": id, "tool": "mark", "arguments": arguments, "repeatable": kind == "repeatable"}


def _step_named(id: str, plan: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The step of this id; an effect of a handler has its number in the id."""
    number, dot, _ = id.partition(".")
    if dot and number.isdigit():
        return plan[int(number) - 1]
    return next(step for step in plan if step["id"] == id)


def planned(step: Mapping[str, Any]) -> PlannedStep:
    is_mark = step["tool"] == "mark"
    return PlannedStep(step["id"], step["tool"] == "file_write" or step.get("repeatable", False), is_mark)


class Driver:
    def __init__(self, scenario: Scenario, platform: Platform) -> None:
        self._scenario = scenario
        self._platform = platform
        self._http = platform.http
        self._submitted: list[Submitted] = []
        self._watchers: list[Watcher] = []
        self._answers: Counter[str] = Counter()
        self._waiting_since: dict[tuple[str, int], float] = {}
        self._retried_calls = 0

    async def run(self) -> Outcome:
        began = time.monotonic()
        answering = asyncio.create_task(self._answer_uncertain(), name="answer uncertain steps")
        runs = [asyncio.create_task(self._one(number), name=f"run {number}") for number in range(self._scenario.runs)]
        try:
            submitting = asyncio.create_task(asyncio.sleep(self._scenario.submit_seconds))
            await self._platform.injector.inflict_all(self._scenario.faults)
            await submitting
            faults_over = time.monotonic()
            await asyncio.wait(runs, timeout=self._scenario.recover_seconds)
            recovered = time.monotonic()
        finally:
            left = [task for task in (answering, *runs) if not task.done()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        for task in (answering, *runs):
            if not task.cancelled():
                task.result()
        await within(2 * LEASE_SECONDS + 3, self._nothing_is_running)
        facts = await self._facts()
        return Outcome(facts, self._counts(facts, faults_over - began, recovered - faults_over))

    async def _one(self, number: int) -> None:
        """A run's whole life, seen by its users."""
        scenario, label = self._scenario, f"run-{number}"
        draw = random.Random(f"{scenario.seed} {label}")
        await asyncio.sleep(scenario.submit_seconds * number / scenario.runs)
        plan = plan_of(label, draw, scenario.step_seconds)
        queue = "default" if number % 3 else "side"
        run_id = await self._submit(label, plan, queue, in_two=draw.random() < 0.3, by_handler=number % 4 == 1)
        is_cancelled = draw.random() < scenario.cancels_per_run
        self._submitted.append(Submitted(label, run_id, plan, is_cancelled))
        watchers = []
        async with asyncio.TaskGroup() as tasks:
            for place in range(scenario.watchers_per_run):
                drops = scenario.drops_frame if place == number == 0 else 0
                name, own = f"watcher {place}", random.Random(f"{scenario.seed} {label} {place}")
                watchers.append(watcher := Watcher(self._http, name, run_id, own, drops))
                late = 0.0 if place == 0 else draw.expovariate(1.0)
                tasks.create_task(_later(late, watcher.watch))
            self._watchers += watchers
            if is_cancelled:
                cancel = {"action": "cancel", "run_id": run_id}
                tasks.create_task(_later(draw.uniform(0.0, 1.5), lambda: self._act(cancel)))

    async def _submit(
        self, label: str, plan: Sequence[dict[str, Any]], queue: str, *, in_two: bool, by_handler: bool
    ) -> str:
        action = "create" if in_two else "run"
        body: dict[str, Any] = {"action": action, "queue": queue, "prompt": label, "plan": {"steps": list(plan)}}
        if by_handler:
            body = {"action": action, "queue": queue, "handler": "chaos-plan", "input": list(plan)}
        answer = await self._act(body, key=label)
        run_id: str = answer["run_id"]
        if in_two:
            await self._act({"action": "start", "run_id": run_id})
        return run_id

    async def _act(self, body: Mapping[str, Any], key: str = "") -> dict[str, Any]:
        """Ask until it is done. A cancel of what is over, and the like, are no faults of anybody."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            with suppress(httpx.TransportError):
                answer = await self._http.post("/agent/execute", json=body, headers=headers)
                if answer.is_success or answer.status_code == 409:
                    return cast(dict[str, Any], answer.json())
                if answer.status_code < 500:
                    raise AssertionError(f"{body['action']} was refused: {answer.status_code} {answer.text}")
            self._retried_calls += 1
            await asyncio.sleep(0.2)

    # --- uncertain steps ---

    async def _answer_uncertain(self) -> None:
        while True:
            await asyncio.sleep(0.3)
            with suppress(Unavailable):
                waiting = await self._platform.direct.store.runs.page(
                    self._platform.user.id, status=RunStatus.WAITING, limit=500
                )
                now = time.monotonic()
                for run in waiting:
                    since = self._waiting_since.setdefault((run.id, run.generation), now)
                    if now - since > ANSWER_SECONDS:
                        await self._answer(run)

    async def _answer(self, run: Run) -> None:
        submitted = next((one for one in self._submitted if one.run_id == run.id), None)
        if submitted is None or run.error is None:
            return
        step = _step_named(str(run.error.step), submitted.plan)
        label, id = submitted.label, step["id"]
        if step["tool"] == "mark":
            was_done = any((mark.label, mark.step) == (label, id) for mark in marks.read(self._platform.marks))
        else:
            was_done = bool(await self._lines(run.id, id))
        answer = "done" if was_done else "repeat"
        with suppress(httpx.TransportError):
            body = {"action": "retry", "run_id": run.id, "uncertain_step": answer}
            # Not again and again as the others: it is an answer to this question, not to the next.
            if (await self._http.post("/agent/execute", json=body, timeout=60.0)).is_success:
                self._answers[answer] += 1

    async def _lines(self, run_id: str, path: str) -> list[str]:
        workspace = self._platform.direct.workspaces.workspace(self._platform.user.id, run_id)
        try:
            return b"".join([chunk async for chunk in workspace.read(path)]).decode().splitlines()
        except NotFound:
            return []

    # --- what is to be checked ---

    async def _nothing_is_running(self) -> bool:
        with suppress(redis.RedisError):
            async with redis.asyncio.Redis(port=self._platform.injector.redis.port) as client:
                return not await client.zcard("jobs:leases")
        return False

    async def _facts(self) -> Facts:
        """Reads everything; stops the platform on the way, before it looks for what was left behind."""
        runs = await self._run_facts()
        for process in self._platform.processes:
            await process.end()
        return Facts(
            runs=runs,
            watchers=tuple(watcher.facts for watcher in self._watchers),
            leftovers=await self._leftovers({run.id for run in runs}),
            redis_was_emptied=bool(EMPTYING & self._platform.injector.done.keys()),
        )

    async def _run_facts(self) -> tuple[RunFacts, ...]:
        database = self._platform.direct.store.database
        rows = await database.read(
            lambda connection: connection.execute(
                select(runs_table.c.id, runs_table.c.status, runs_table.c.error, runs_table.c.given_plan)
            ).all()
        )
        stored = await database.read(
            lambda connection: connection.execute(
                select(events_table.c.run_id, events_table.c.line).order_by(events_table.c.run_id, events_table.c.id)
            ).all()
        )
        events: dict[str, list[Event]] = {}
        for row in stored:
            event = decode(row.line)
            events.setdefault(row.run_id, []).append(event_of(event.id, event.type, event.line))
        made: dict[str, list[str]] = {}
        for mark in marks.read(self._platform.marks):
            made.setdefault(mark.label, []).append(mark.step)
        by_id = {row.id: row for row in rows}
        facts = []
        for one in self._submitted:
            kept = by_id.get(one.run_id)
            facts.append(
                RunFacts(
                    id=one.run_id,
                    steps=tuple(map(planned, one.plan)),
                    status=kept.status if kept else None,
                    marks=(*made.get(one.label, ()), *await self._file_marks(one)),
                    events=tuple(events.get(one.run_id, ())),
                    is_cancelled=one.is_cancelled,
                    error=str((kept.error or "") if kept else ""),
                )
            )
        return tuple(facts)

    async def _file_marks(self, one: Submitted) -> list[str]:
        """A step that writes a file has done so as often as its line stands there."""
        found = []
        for step in one.plan:
            if step["tool"] != "mark":
                lines = await self._lines(one.run_id, step["id"])
                found += [step["id"] if line == f"{one.label} {step['id']}" else line for line in lines]
        return found

    async def _leftovers(self, over: set[str]) -> Leftovers:
        permanent = tuple(key.pattern for key in KEYS if key.lifetime.startswith("permanent"))
        keys: dict[str, int] = {}
        holding: dict[str, tuple[str, ...]] = {}
        async with redis.asyncio.Redis(port=self._platform.injector.redis.port, decode_responses=True) as client:
            # The jobs of the last runs that are over stay as long as this bounded list names them.
            permanent += tuple(f"jobs:{run_id}" for run_id in await _members(client, "jobs:finished"))
            async for key in client.scan_iter(count=1000):
                keys[key] = await client.ttl(key)
                if keys[key] < 0 and key not in MAY_NAME_WHAT_IS_OVER:
                    named = tuple(member for member in await _members(client, key) if any(id in member for id in over))
                    if named:
                        holding[key] = named
        leases = holding.pop("jobs:leases", ())
        found = await asyncio.to_thread(processes.left_over, self._platform.marker, self._platform.folder)
        overstayed = [
            f"{one.name} did not end when it was asked to" for one in self._platform.processes if one.overstayed
        ]
        return Leftovers(keys, permanent, holding, leases, (*found, *overstayed))

    def _counts(self, facts: Facts, chaos_seconds: float, recovery_seconds: float) -> dict[str, Any]:
        statuses = Counter(run.status for run in facts.runs)
        return {
            "seed": self._scenario.seed,
            "runs": len(facts.runs),
            "statuses": {str(status): count for status, count in sorted(statuses.items(), key=str)},
            "steps": sum(len(run.steps) for run in facts.runs),
            "marks": sum(len(run.marks) for run in facts.runs),
            "events": sum(len(run.events) for run in facts.runs),
            "gaps": sum(event.type == "gap" for run in facts.runs for event in run.events),
            "watchers": len(facts.watchers),
            "frames": sum(len(watcher.events) for watcher in facts.watchers),
            "connections": sum(watcher.connections for watcher in self._watchers),
            "calls_repeated": self._retried_calls,
            "uncertain_steps": dict(self._answers),
            "overstayed": sum(process.overstayed for process in self._platform.processes),
            "faults": dict(self._platform.injector.done),
            "chaos_seconds": round(chaos_seconds, 1),
            "recovery_seconds": round(recovery_seconds, 1),
        }


async def _later(seconds: float, work: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.sleep(seconds)
    await work()


async def _members(client: "redis.asyncio.Redis", key: str) -> list[str]:
    """What a key holds, whatever its type, as texts."""
    match await client.type(key):
        case "list":
            return [str(item) for item in await cast(Any, client.lrange(key, 0, -1))]
        case "zset":
            return [str(item) for item in await client.zrange(key, 0, -1)]
        case "set":
            return [str(item) for item in await cast(Any, client.smembers(key))]
        case "hash":
            return [str(item) for pair in (await cast(Any, client.hgetall(key))).items() for item in pair]
    return []
