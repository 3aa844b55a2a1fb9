"""Follows what the replicas of deployments print, and stores it: each line once, in the order of each replica.

Whoever follows may be killed or lose its connection at any line. It goes on from the time of the last line that is
stored, and drops what comes again. Lines that come faster than LINES_PER_SECOND are counted and not kept, so that an
agent that prints without end fills no database.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from backplane.domain.deployments import LOG_BATCH_LINES, Deployment, PrintedLine
from backplane.errors import Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import end
from backplane.store import DeploymentStore
from controller.deployments.target import DeployTarget

LINES_PER_SECOND = 200.0
LINES_AT_ONCE = 1000.0
"""Of a deployment: its start and its stack traces come whole."""
FLUSH_SECONDS = 0.3
AGAIN_SECONDS = 2.0
"""A replica that has ended is asked again after so long, as long as the target has it: it may have been restarted."""
REPLICAS_MAX = 1000
"""Followed at once, a connection or a process each."""

log = structlog.get_logger()


@dataclass(slots=True)
class LineCursor:
    """How far a replica's lines are stored. `last`: the time of the last one. `_count`: how many that are stored have
    it: of two lines of one microsecond, a controller may have stored one when it was killed."""

    last: datetime | None = None
    _count: int = 0
    _again: int | None = None
    """How many lines with that time are still to come again; None: all that come with it have been there."""

    def begin(self) -> None:
        """The lines from `last` on come again."""
        if self._count:
            self._again = self._count

    def is_new(self, at: datetime) -> bool:
        if self.last is None or at > self.last:
            self.last, self._count, self._again = at, 1, 0
            return True
        if at < self.last or self._again is None:
            return False
        if self._again:
            self._again -= 1
            return False
        self._count += 1
        return True


@dataclass(slots=True)
class LineAllowance:
    """Lines that may be kept now: it fills by the second."""

    rate: float = LINES_PER_SECOND
    most: float = LINES_AT_ONCE
    left: float = LINES_AT_ONCE
    at: float = 0.0

    def takes(self, now: float) -> bool:
        self.left = min(self.left + max(now - self.at, 0.0) * self.rate, self.most)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(slots=True)
class _Followed:
    """One deployment. `lines`: not stored yet. `left_out`: since the last line that was kept."""

    deployment: Deployment
    allowance: LineAllowance
    lines: list[PrintedLine] = field(default_factory=list)
    left_out: int = 0
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    known: dict[str, tuple[datetime, int]] | None = None
    has_room: asyncio.Event = field(default_factory=asyncio.Event)


class LogFollower:
    """`follow` again and again with all deployments that there are; `stop` at the end."""

    def __init__(self, store: DeploymentStore, target: DeployTarget) -> None:
        self._store = store
        self._target = target
        self._followed: dict[str, _Followed] = {}
        self._storing: asyncio.Task[None] | None = None

    async def follow(self, deployments: Sequence[Deployment]) -> None:
        """Begin with replicas that are new. Raises Unavailable."""
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_again_and_again(), name="store lines of deployments")
        there = {one.id: one for one in deployments}
        for id in [id for id in self._followed if id not in there]:
            await end(*self._followed.pop(id).tasks.values())
        for id, deployment in there.items():
            replicas = self._target.replicas(deployment)
            if not replicas and id not in self._followed:
                continue
            now = asyncio.get_running_loop().time()
            followed = self._followed.setdefault(id, _Followed(deployment, LineAllowance(at=now)))
            followed.deployment = deployment
            if followed.known is None:
                followed.known = await self._store.last_log_times(id)
            for replica in replicas:
                if replica not in followed.tasks and self._count() < REPLICAS_MAX:
                    task = asyncio.create_task(self._read(followed, replica), name=f"log of {replica}")
                    followed.tasks[replica] = task
            for replica in [name for name, task in followed.tasks.items() if task.done() and name not in replicas]:
                del followed.tasks[replica]

    async def stop(self) -> None:
        """What was read and not stored yet is stored, if it can be."""
        followed, self._followed = self._followed, {}
        await end(*(task for one in followed.values() for task in one.tasks.values()))
        if self._storing is not None:
            await end(self._storing)
            self._storing = None
        for one in followed.values():
            with contextlib.suppress(Unavailable):
                await self._write(one)

    def _count(self) -> int:
        return sum(not task.done() for one in self._followed.values() for task in one.tasks.values())

    async def _read(self, followed: _Followed, replica: str) -> None:
        cursor = LineCursor(*(followed.known or {}).get(replica, (None, 0)))
        waits = pauses()
        while True:
            deployment = followed.deployment
            cursor.begin()
            try:
                async with contextlib.aclosing(self._target.printed(deployment, replica, cursor.last)) as printed:
                    async for line in printed:
                        waits = pauses()
                        if cursor.is_new(line.at):
                            await self._add(followed, line)
                pause = AGAIN_SECONDS
            except Unavailable as error:
                pause = next(waits)
                log.info("the log of a replica is interrupted", replica=replica, error=error.message)
            except Exception as fault:
                log.error("a log is not followed by a fault of the platform", replica=replica, exc_info=fault)
                return
            if replica not in self._target.replicas(followed.deployment):
                return
            await asyncio.sleep(pause)

    async def _add(self, followed: _Followed, line: PrintedLine) -> None:
        if not followed.allowance.takes(asyncio.get_running_loop().time()):
            followed.left_out += 1
            return
        while len(followed.lines) >= LOG_BATCH_LINES:
            # The database is away: the target keeps the lines until it is back.
            followed.has_room.clear()
            await followed.has_room.wait()
        followed.lines.append(replace(line, left_out=followed.left_out))
        followed.left_out = 0

    async def _store_again_and_again(self) -> None:
        waits = pauses()
        while True:
            pause = FLUSH_SECONDS
            for followed in list(self._followed.values()):
                try:
                    await self._write(followed)
                    waits = pauses()
                except Unavailable as error:
                    pause = next(waits)
                    log.warning("lines of deployments are not stored yet", error=error.message)
                    break
            await asyncio.sleep(pause)

    async def _write(self, followed: _Followed) -> None:
        """Raises Unavailable, and keeps the lines then."""
        if lines := followed.lines[:LOG_BATCH_LINES]:
            await self._store.add_log_lines(followed.deployment.id, lines)
            del followed.lines[: len(lines)]
            followed.has_room.set()
