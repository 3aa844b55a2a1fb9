"""Processes of pools as children of this process, on one machine.

They die with it, even when it is killed. One that has ended is not started again by itself: whether another is needed
is decided anew, a second later, by what agents need. One that ends soon after its start, again and again (a role that
cannot be loaded, a database that refuses), is started after pauses that grow.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from backplane.domain.agents import Pool, PoolProcess
from backplane.errors import Unavailable
from backplane.process.supervisor import (
    ChildProcess,
    RestartPauses,
    child_environment,
    how_it_ended,
    python_module,
    stop_together,
)
from controller.pools.launcher import Launcher

LAST_WORDS_SECONDS = 8.0
"""Less than whoever stops this process gives it."""
ENTER_SECONDS = 60.0
"""How long a process may take to enter itself, before this is logged: it may wait for a model, or stand still in a file
of ROLES_DIR."""

log = structlog.get_logger()


class _Failures:
    """How long to wait after processes of a pool that ended soon after their start."""

    def __init__(self) -> None:
        self._pauses = RestartPauses()
        self._pause: float | None = None
        self._until = 0.0

    def ended(self, lived: float) -> None:
        self._pause = self._pauses.after(self._pause, lived)
        self._until = time.monotonic() + self._pause

    @property
    def seconds_left(self) -> float:
        return max(self._until - time.monotonic(), 0.0)


class ChildLauncher(Launcher):
    """`logs`: the folder of what the processes print; None: it goes where this process prints its errors.
    `variables`: settings of theirs that differ from this process's own."""

    def __init__(self, *, grace_seconds: float, logs: Path | None, variables: Mapping[str, str]) -> None:
        self._grace = grace_seconds
        self._logs = logs
        self._environment = child_environment(variables)
        self._entered: set[int] = set()
        self._late: set[int] = set()
        self._children: dict[str, dict[int, tuple[ChildProcess, float]]] = defaultdict(dict)
        self._watching: set[asyncio.Task[None]] = set()
        self._failures: dict[str, _Failures] = defaultdict(_Failures)
        self._closing = False

    @property
    def pids(self) -> dict[str, list[int]]:
        """Of the processes that run, by pool."""
        return {pool: sorted(running) for pool, running in self._children.items() if running}

    async def coming(self, pool: str, entered: Sequence[PoolProcess]) -> int:
        # A process's id is its host's name, its pid and some random digits.
        there = {one.id.rsplit("-", 2)[1] for one in entered if one.node == socket.gethostname()}
        running = self._children[pool]
        self._entered |= {pid for pid in running if str(pid) in there}
        self._log_late(pool)
        # One that was there before and is not any more stands still: another takes its agents.
        return len(running.keys() - self._entered)

    def _log_late(self, pool: str) -> None:
        """Log once of a process that it does not come: no other one is started in its place."""
        before = time.monotonic() - ENTER_SECONDS
        for pid, (child, started) in self._children[pool].items():
            if started < before and pid not in self._entered | self._late:
                self._late.add(pid)
                words = self._logs and child.last_words()
                log.warning("a process of a pool was started and takes no agents yet", pool=pool, pid=pid, log=words)

    async def start(self, pool: Pool, count: int, wanted: int) -> None:
        if self._failures[pool.name].seconds_left:
            message = f"a process of pool {pool.name} ended soon after its start; its log says why; it is tried again"
            raise Unavailable(message, part="pool")
        for _ in range(count):
            await self._start(pool.name)

    async def _start(self, pool: str) -> None:
        child = ChildProcess(
            f"pool-{pool}",
            python_module("worker.pool", pool),
            environment=self._environment,
            log=self._logs / f"pool-{pool}.log" if self._logs else _own_errors(),
        )
        try:
            await child.start()
        except OSError as error:
            raise Unavailable(f"a process of pool {pool} cannot be started: {error}", part="pool") from error
        if child.pid is None:
            return
        log.info("a process of a pool is started", pool=pool, pid=child.pid)
        self._children[pool][child.pid] = (child, time.monotonic())
        watching = asyncio.create_task(self._watch(pool, child, child.pid), name=f"pool {pool}")
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    async def _watch(self, pool: str, child: ChildProcess, pid: int) -> None:
        code = await child.exited()
        _, started = self._children[pool].pop(pid)
        self._entered.discard(pid)
        self._late.discard(pid)
        if self._closing or code == 0:
            log.info("a process of a pool has ended", pool=pool, pid=pid)
            return
        self._failures[pool].ended(time.monotonic() - started)
        log.warning(
            f"a process of a pool {how_it_ended(code)}", pool=pool, pid=pid, log=self._logs and child.last_words()
        )

    async def end(self, pool: Pool, processes: Sequence[PoolProcess], wanted: int) -> None:
        """They drain already, and end by themselves: those of other machines too."""

    async def hindrance(self, pool: str) -> str | None:
        """What ends at its start is reported by `start`."""
        return None

    async def close(self) -> None:
        self._closing = True
        children = [child for running in self._children.values() for child, _ in running.values()]
        await stop_together(children, self._grace + LAST_WORDS_SECONDS)
        if self._watching:
            await asyncio.wait(set(self._watching))


def _own_errors() -> Path | None:
    """Where this process prints its errors, if a file of that name can be opened: not where it is a socket."""
    path = Path("/dev/stderr")
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
        return path
    return None


def logs_beside(folder: str | None) -> Path | None:
    """The folder of the processes' logs, made where it is missing; None without one."""
    if not folder:
        return None
    path = Path(folder)
    with contextlib.suppress(OSError):
        path.mkdir(parents=True, exist_ok=True)
    return path if os.access(path, os.W_OK) else None
