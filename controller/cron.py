"""Sees to it that RQ runs on this machine: its scheduler and its worker, once, however many controllers there are.

RQ's scheduler has three habits that this is built around. Two of them tick twice: so both processes belong to whoever
has a lease in Redis, and are ended when it is lost. They end when Redis restarts: so they are started again, with
pauses that grow. They know only one Redis server: on a cluster, and where everything is to be one process, `SweepTimer`
does the same task without RQ.

Only what is periodic and may be done twice, or a while later, is done so. A webhook, or anything else that must not be
lost, is a row in the database.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from backplane.errors import PlatformError, Unavailable
from backplane.leases.redis import RedisLease
from backplane.process.tasks import end
from backplane.settings import Settings
from backplane.store import Runs
from controller.cleanup import sessions

PROJECT = Path(__file__).parents[1]
KINDS = ("scheduler", "worker")
LOOKS_A_LEASE = 3
STOP_SECONDS = 5.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

Removed = Callable[[str, int], None]
"""Is told of a kind of thing how many were removed."""

log = structlog.get_logger()


def is_possible(settings: Settings) -> bool:
    """Whether RQ can work with this Redis."""
    return "+cluster" not in settings.redis_url.get_secret_value().partition("://")[0]


class Cron:
    """`machine` is whose tasks these are, `environment` that of the processes; `removed` is told what tasks removed.

    `run` goes on until it is cancelled; `stop` must follow, and ends the processes.
    """

    def __init__(self, lease: RedisLease, machine: str, environment: Mapping[str, str], removed: Removed) -> None:
        self._lease = lease
        self._waits = False
        self._processes = [RqProcess(kind, machine, environment, removed) for kind in KINDS]

    async def run(self) -> None:
        while True:
            # First, because there is no hurry, and enough else to do when everything starts.
            await asyncio.sleep(self._lease.seconds / LOOKS_A_LEASE * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            if await self._is_ours():
                for process in self._processes:
                    await process.start_if_due()
            else:
                await self._stop_processes()

    async def stop(self) -> None:
        await self._stop_processes()
        try:
            await self._lease.give_up()
        except Unavailable as error:
            log.debug("could not give up the lease of periodic tasks", error=error.message)

    async def _is_ours(self) -> bool:
        had = not self._lease.is_over
        try:
            has = await self._lease.hold()
        except Unavailable as error:
            if not self._waits:
                log.warning("periodic tasks wait for Redis", error=error.message)
            self._waits = True
            return not self._lease.is_over
        self._waits = False
        if has != had:
            log.info("periodic tasks are done here" if has else "periodic tasks are done by another controller")
        return has

    async def _stop_processes(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes))


class RqProcess:
    """A process of `controller.rq_processes`: started again when it ends, stopped when it is told to."""

    def __init__(self, kind: str, machine: str, environment: Mapping[str, str], removed: Removed) -> None:
        self.kind = kind
        self._argv = [sys.executable, "-m", "controller.rq_processes", kind, machine]
        self._environment = environment
        self._removed = removed
        self._starting: asyncio.Future[asyncio.subprocess.Process] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._pause = 0.0
        self._began = 0.0
        self._due = 0.0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def start_if_due(self) -> None:
        """Nothing while it runs, and until the pause after its last end is over."""
        if self._starting is not None:
            if self.pid is not None:
                return
            await self._ended()
        if time.monotonic() >= self._due:
            self._began = time.monotonic()
            # Kept, so that `stop` ends a process whose start was waited for when everything was cancelled.
            self._starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=self._environment,
                    # Ctrl-C in a terminal is for the controller, which ends its processes in order.
                    start_new_session=True,
                )
            )
            try:
                process = await asyncio.shield(self._starting)
            except OSError as error:
                log.error("a process of RQ cannot be started", kind=self.kind, error=str(error))
                self._starting, self._due = None, time.monotonic() + LONGEST_PAUSE_SECONDS
                return
            self._reading = asyncio.create_task(self._read(process), name=f"what RQ's {self.kind} says")

    async def stop(self) -> None:
        if self._starting is None:
            return
        process = await self._starting
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await self._forget()
        self._pause = self._due = 0.0

    @property
    def _process(self) -> asyncio.subprocess.Process | None:
        return self._starting.result() if self._starting and self._starting.done() else None

    async def _ended(self) -> None:
        lasted, code = time.monotonic() - self._began, self._process.returncode if self._process else None
        self._pause = (
            0.0
            if lasted > LONGEST_PAUSE_SECONDS
            else min(max(self._pause * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        )
        self._due = time.monotonic() + self._pause
        await self._forget()
        log.warning("a process of RQ ended and is started again", kind=self.kind, status=code, pause=self._pause)

    async def _forget(self) -> None:
        if self._reading:
            await end(self._reading)
        self._starting = self._reading = None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Its tasks tell what they have done; whatever else is printed there is none of ours."""
        if process.stdout is None:
            return
        while line := await process.stdout.readline():
            try:
                counts = {str(kind): int(count) for kind, count in json.loads(line).items()}
            except (ValueError, AttributeError, TypeError):
                continue
            for kind, count in counts.items():
                self._removed(kind, count)


class SweepTimer:
    """The same sweep without RQ, in this process. The period is in seconds."""

    def __init__(self, settings: Settings, runs: Runs, removed: Removed) -> None:
        self._settings = settings
        self._runs = runs
        self._removed = removed

    async def run(self) -> None:
        while True:
            try:
                for kind, count in (await sessions.remove_old_sessions(self._settings, self._runs)).items():
                    self._removed(kind, count)
            except PlatformError as error:
                log.warning("old sessions are not removed", error=error.message)
            await asyncio.sleep(self._settings.session_check_seconds)


def environment_of(settings: Settings, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which a process of this project reads these settings, wherever these came from."""
    given = {name: _as_text(getattr(settings, name)) for name in settings.model_fields_set}
    kept = {name: value for name, value in base.items() if name.lower() not in given}
    path = os.pathsep.join(filter(None, [str(PROJECT), base.get("PYTHONPATH", "")]))
    return {**kept, **{name.upper(): value for name, value in given.items()}, "PYTHONPATH": path}


def _as_text(value: Any) -> str:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case bool() | dict() | list() | tuple():
            return json.dumps(value)
        case _:
            return str(value)
