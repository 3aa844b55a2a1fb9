"""Real workers, and runs for them to carry out.

A run is submitted, started, cancelled and retried by the API's own code, so that nothing here plays its part. A worker
is either a task of the test's own process, so that a test can give it a tool of its own, or a process that can be
killed. Leases are short, so that a lost worker is found out within two seconds.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.known_tools import KnownTools
from app.schemas.execute import NewRun
from app.submission import Submission
from backplane.domain.events import Event, EventType
from backplane.domain.runs import Run, RunStatus, Taken
from backplane.domain.steps import StepRecord
from backplane.domain.users import User
from backplane.errors import Unavailable
from backplane.limits.storage.limits import StorageLimits
from backplane.logs.base import Announced, BusAnnounced, SubscriptionLost
from backplane.process.tasks import end
from backplane.queue.base import Claim
from backplane.resources import Resources, storage_quota
from backplane.run_actions.known_queues import KnownQueues
from backplane.settings import Settings
from backplane.tool_catalogue.base import ToolCatalogue, ToolSet
from tests.event_data import data_of, documented
from tests.queues import redis_queue
from tests.waiting import wait_until
from worker.sandbox.local.sandbox import open_local_sandbox
from worker.service import serve

ROOT = Path(__file__).parents[2]
LONG_SECONDS = 30.0

BEGUN = "begun"
UNTIL_GO = f"echo {BEGUN}; until [ -e go ]; do sleep 0.02; done"
"""A script that says that it began, and ends when a file `go` appears (`Platform.let_go`)."""

QUICK = {
    "lease_seconds": 1.0,
    "heartbeat_seconds": 0.2,
    "retry_base_seconds": 0.02,
    "retry_max_seconds": 0.05,
    "worker_grace_seconds": 0.5,
    "log_format": "json",
}


class NothingPublished(ToolCatalogue):
    async def publish(self, tools: ToolSet, *, worker_id: str, seconds: float) -> None:
        raise NotImplementedError

    async def published(self) -> Sequence[tuple[str, str]]:
        return ()

    async def publishers(self) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class Platform:
    """The parts as the API sees them, and a user. `scratch` is where the workers keep their files."""

    settings: Settings
    resources: Resources
    user: User
    scratch: Path

    @cached_property
    def submission(self) -> Submission:
        resources = self.resources
        limits = StorageLimits(resources.storage, storage_quota(self.settings))
        parts = (self.settings, resources.store, resources.queue, resources.event_log)
        # Plans reach the workers as they are, also those that the API would refuse.
        known_tools = KnownTools(NothingPublished(), resources.queue.worker_ids, {}, ())
        return Submission(*parts, limits, known_tools, KnownQueues(resources.queue, self.settings.queues))

    async def submit(self, *steps: dict[str, Any], user: User | None = None, **values: Any) -> str:
        """The id of a new run, queued, with these steps as its plan; `values` are fields of the API's `create`."""
        plan = {"plan": {"steps": list(steps)}} if steps else {}
        new = NewRun(**{"prompt": "a test", **plan, **values})
        return (await self.submission.create(user or self.user, new, None, start=True)).id

    async def run(self, run_id: str) -> Run:
        return await self.resources.store.runs.get(self.user.id, run_id)

    async def until(self, run_id: str, *statuses: RunStatus) -> Run:
        """The run, once it is in one of these states."""

        async def reached() -> Run | None:
            with suppress(Unavailable):
                run = await self.run(run_id)
                return run if run.status in statuses else None
            return None

        run = await wait_until(reached, LONG_SECONDS, f"run {run_id} becomes {' or '.join(statuses)}")
        assert run is not None
        return run

    async def completed(self, run_id: str) -> Run:
        """The run, once it is over, which it must be by success."""
        run = await self.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.WAITING)
        assert run.status is RunStatus.COMPLETED, run.error
        return run

    async def until_begun(self, run_id: str, times: int = 1) -> None:
        """Until a step's script has said so, so often."""

        async def begun() -> bool:
            return (await self.lines(run_id)).count(BEGUN) >= times

        await wait_until(begun, LONG_SECONDS, f"a step of {run_id} begins")

    async def let_go(self, run_id: str) -> None:
        """Let scripts end that wait for `go`: one that has begun, and those of workers that are yet to start."""
        await self.write(run_id, "go", b"")
        for checkout in self.checkouts(run_id):
            (checkout / "go").touch()

    def checkouts(self, run_id: str) -> list[Path]:
        """Where workers have a copy of the run's files."""
        return list(self.scratch.glob(f"*/{run_id}-*/files"))

    async def history(self, run_id: str) -> list[Event]:
        """The events that the database has, up to now."""
        return [documented(event) for event in await self.resources.store.events.after(run_id, 0, 100_000)]

    async def event_data(self, run_id: str, type: EventType) -> list[dict[str, Any]]:
        return [data_of(event) for event in await self.history(run_id) if event.type is type]

    async def statuses(self, run_id: str) -> list[tuple[str, int | None]]:
        return [(data["status"], data.get("attempt")) for data in await self.event_data(run_id, EventType.STATUS)]

    async def step_statuses(self, run_id: str) -> list[tuple[str, str]]:
        return [(data["step"], data["status"]) for data in await self.event_data(run_id, EventType.STEP)]

    async def lines(self, run_id: str) -> list[str]:
        return [data["line"] for data in await self.event_data(run_id, EventType.LOG)]

    async def journal(self, run_id: str) -> list[StepRecord]:
        return await self.resources.store.journal.steps(run_id, with_files=True)

    async def read(self, run_id: str, path: str) -> bytes:
        workspace = self.resources.workspaces.workspace(self.user.id, run_id)
        return b"".join([chunk async for chunk in workspace.read(path)])

    async def write(self, run_id: str, path: str, content: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            if content:
                yield content

        await self.resources.workspaces.workspace(self.user.id, run_id).write(path, chunks())

    async def ends_whole(self, run_id: str) -> None:
        """That watchers get every event of the run once, in order, up to its one end."""
        events = await self.history(run_id)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert [event.type for event in events].count(EventType.END) == 1
        assert events[-1].type is EventType.END

    @asynccontextmanager
    async def published(self, run_id: str) -> AsyncIterator[list[Event]]:
        """The events of the run that reach its watchers from here on, as they come. As a watcher does, it reads the
        history when it was cut off for a while."""
        received: list[Event] = []
        first = await self.resources.store.events.last_id(run_id) + 1
        async with self.resources.event_log.subscription() as subscription:

            async def listen() -> None:
                async for events in subscription.listen():
                    assert not isinstance(events, Announced | BusAnnounced)
                    if isinstance(events, SubscriptionLost):
                        last = received[-1].id if received else first - 1
                        events = [event for event in await self.history(run_id) if event.id > last]
                    received.extend(event for event in events if not received or event.id > received[-1].id)

            listening = asyncio.create_task(listen())
            try:
                await subscription.add(run_id)
                yield received
            finally:
                await end(listening)

    async def everything(self, run_id: str) -> tuple[object, ...]:
        """All that is kept of a run anywhere."""
        resources = self.resources
        files = await resources.workspaces.workspace(self.user.id, run_id).list()
        live = await resources.event_log.after(run_id, 0, 100_000)
        return await self.run(run_id), await self.journal(run_id), await self.history(run_id), files, live

    # --- a worker that is played by hand, and lost ---

    async def claimed(self, *, crashes: int = 0) -> Claim:
        """The next run, claimed for so short that the claim has ended; so many claims of it ended before."""
        queue = redis_queue(self.resources.redis, lease_seconds=0.001)

        async def next_claim() -> list[Claim]:
            await queue.reap(10)
            return [claim for claim in await queue.claim("by-hand", 1) if claim.crashes >= crashes]

        [claim] = await wait_until(next_claim)
        return claim

    async def taken(self, claim: Claim) -> Taken:
        taken = await self.resources.store.running_runs.take(claim.run_id, claim.generation)
        assert taken is not None
        return taken


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator["asyncio.Task[None]"]:
    """A worker in this process. Leaving the block drains it; an error of the worker's is raised there."""
    stop = asyncio.Event()
    working = asyncio.create_task(serve(settings, stop), name="worker under test")
    try:
        yield working
    finally:
        stop.set()
        await working


class WorkerProcess:
    """`python -m worker` with these settings, or another module that works as that does. `left_open`: files that it
    inherits."""

    def __init__(
        self,
        settings: Settings,
        scratch: Path,
        *,
        module: str = "worker",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        left_open: Sequence[int] = (),
    ) -> None:
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG", "KUBECONFIG") if name in os.environ},
            **environment_of(settings),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
            **(environment or {}),
        }
        self._module = module
        self._arguments = arguments
        self._left_open = left_open
        self._scratch = scratch
        self._log = scratch.parent / "workers.log"
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it takes runs."""
        self._log = self._log.with_name(f"worker-{len(list(self._log.parent.glob('worker-*.log')))}.log")
        with self._log.open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                *self._arguments,
                cwd=self._scratch,
                env=self.environment,
                stdout=output,
                stderr=output,
                pass_fds=self._left_open,
            )
        await self.until_logged("worker ready")

    def logged(self) -> Sequence[dict[str, Any]]:
        """What it logged; lines that are no JSON are as they are under `event`."""
        lines = self._log.read_text().splitlines()
        return [json.loads(line) if line.startswith("{") else {"event": line} for line in lines]

    async def until_logged(self, event: str) -> None:
        await wait_until(
            lambda: any(line["event"] == event for line in self.logged()), LONG_SECONDS, f"a worker says {event!r}"
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        async with asyncio.timeout(LONG_SECONDS):
            return await self.process.wait()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def kill(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None and self.is_running:
            self.process.kill()
            await self.process.wait()


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that make these settings; only those that are not the default."""

    def text_of(value: object) -> str:
        match value:
            case SecretStr():
                return value.get_secret_value()
            case dict() | list():
                return json.dumps(value)
        return str(value)

    return {name.upper(): text_of(getattr(settings, name)) for name in settings.model_fields_set}


def processes_with(text: str) -> list[int]:
    """Processes of this machine in whose command line this text stands."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text.encode() in command:
            found.append(int(process.name))
    return found


async def skip_without_isolation() -> None:
    """For what holds only where the code of runs is isolated: elsewhere a step that was cut off asks a person."""
    try:
        sandbox = await open_local_sandbox(require_isolation=True)
    except Unavailable as error:
        if os.environ.get("CI"):
            pytest.fail(error.message, pytrace=False)
        pytest.skip(error.message)
    await sandbox.close()
