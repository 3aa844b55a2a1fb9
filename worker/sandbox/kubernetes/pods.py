"""The pods of one worker: how one is started, checked, and ended.

A pod ends in one of two ways. One that has done its work is dismissed: its first process ends, and its finished Job
stays, to be looked at. One that went wrong, or is not needed, is removed: what runs in it is killed, and its Job is
deleted, unless another worker has taken it over. What cannot be removed is left for the controller.

Which pod a command gets is not decided here, but in `worker.sandbox.kubernetes.pool`.
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from backplane.domain import sandbox_labels
from backplane.errors import PlatformError, Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import uninterrupted
from worker.sandbox.base import Limits, NoticeSink, SandboxQuotaExceeded
from worker.sandbox.kubernetes import manifest as job
from worker.sandbox.kubernetes.channel import Channel, NotUnderstood
from worker.sandbox.kubernetes.jobs import WorkerJobs
from worker.sandbox.kubernetes.manifest import JobSettings
from worker.sandbox.kubernetes.pod.frames import ENDED, KILL, QUIT, frame
from worker.sandbox.kubernetes.pod.packed import PIPE_ARGV
from worker.sandbox.kubernetes.sync import FileSync

KILL_SECONDS = 2.0
DELETE_SECONDS = 10.0

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Pod:
    """One sandbox: its Job, and what this worker knows of it. `used`: a command has begun in it. `is_idle`: the last
    command has ended and its files were fetched, so that the same command, given once more, begins anew."""

    job: str
    pod: str
    generation: int
    files: FileSync = field(default_factory=FileSync)
    used: bool = False
    is_idle: bool = False
    born: float = field(default_factory=time.monotonic)
    channel: Channel | None = None
    _stream: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def connect(self, jobs: WorkerJobs) -> Channel:
        """The open channel to its runner, or a new one. Raises Unavailable, and SandboxRefused where the worker may not
        speak with pods."""
        if self.channel is None:
            stream = await self._stream.enter_async_context(jobs.exec(self.pod, PIPE_ARGV))
            self.channel = Channel(stream)
        return self.channel

    async def disconnect(self) -> None:
        self.channel = None
        stream, self._stream = self._stream, AsyncExitStack()
        with suppress(PlatformError, OSError):
            await stream.aclose()


class Pods:
    """`start_seconds`: how long a pod may take until its container runs."""

    def __init__(self, jobs: WorkerJobs, settings: JobSettings, start_seconds: float) -> None:
        self.jobs = jobs
        self.settings = settings
        self._start_seconds = start_seconds
        self._ending: set[asyncio.Task[None]] = set()

    async def start(
        self, name: str, labels: Mapping[str, str], limits: Limits, deadline_seconds: float, notice: NoticeSink | None
    ) -> str:
        """Make a Job and wait until its container runs: the name of its pod. `deadline_seconds` count from then on.
        Without a `notice` nobody waits for this pod in particular, so a quota that is used up is an error at once.
        Raises SandboxError, after which the Job is gone, and Unavailable, after which it may still start."""
        deadline = self._start_seconds + deadline_seconds
        manifest = job.manifest(name, labels, limits, self.settings, deadline)
        try:
            if notice is None:
                await self.jobs.create(manifest)
                return await self.jobs.started(name, self._start_seconds, lambda line: None)
            await self._create(manifest, notice)
            return await self.jobs.started(name, self._start_seconds, notice)
        except Unavailable:
            raise
        except BaseException:
            await uninterrupted(self.delete(name))
            raise

    async def _create(self, manifest: dict[str, Any], notice: NoticeSink) -> None:
        """Make the Job. A quota that is used up becomes free when other Jobs end, so it is waited for, like a place on
        a node."""
        until, waits, has_noticed = time.monotonic() + self._start_seconds, pauses(), False
        while True:
            try:
                await self.jobs.create(manifest)
                return
            except SandboxQuotaExceeded as error:
                if time.monotonic() >= until:
                    raise
                if not has_noticed:
                    notice(error.message)
                    has_noticed = True
            await asyncio.sleep(next(waits))

    async def check(self, pod: Pod) -> None:
        """Raises SandboxError, NotUnderstood or TimeoutError unless its runner answers. A connection that ended is
        noticed only by somebody who uses it."""
        async with asyncio.timeout(KILL_SECONDS):
            channel = await pod.connect(self.jobs)
            try:
                await channel.greet(generation=pod.generation, call="", offset=0, peek=True)
            except Unavailable as error:
                raise NotUnderstood(error.message) from error

    async def dismiss(self, pod: Pod) -> None:
        """Let its first process end: the Job is then finished, and stays for a while to be looked at."""
        try:
            async with asyncio.timeout(KILL_SECONDS):
                channel = await pod.connect(self.jobs)
                if not pod.used:
                    await channel.greet(generation=pod.generation, call="", offset=0)
                await channel.send(frame(QUIT))
                with suppress(Unavailable):
                    while True:
                        await channel.receive()
        except (PlatformError, NotUnderstood, TimeoutError) as error:
            log.info("deleting a sandbox that does not end", job=pod.job, error=str(error))
            await self.delete(pod.job)
        finally:
            await pod.disconnect()
            self.jobs.forget(pod.job)

    def dismiss_later(self, pod: Pod) -> None:
        """Like `dismiss`, but nobody waits for it before `close`."""
        self._later(self.dismiss(pod))

    async def remove(self, pod: Pod, run_id: str) -> None:
        """Kill what runs in it and delete its Job, unless another worker has taken the Job over. `run_id` is the run
        that it was given to; empty for one that was given to none."""
        if pod.channel:
            with suppress(PlatformError, NotUnderstood, TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await pod.channel.send(frame(KILL))
                    while (await pod.channel.receive())[0] != ENDED:
                        pass
        await pod.disconnect()
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                if not run_id or await self._is_ours(pod, run_id):
                    await self.jobs.delete(pod.job)
        except (PlatformError, TimeoutError) as error:
            log.warning("a sandbox is left for the controller to remove", job=pod.job, error=str(error))
        finally:
            self.jobs.forget(pod.job)

    async def _is_ours(self, pod: Pod, run_id: str) -> bool:
        labels = {
            sandbox_labels.RUN: sandbox_labels.label_value(run_id),
            sandbox_labels.GENERATION: str(pod.generation),
        }
        return any(found.name == pod.job for found in await self.jobs.find(labels))

    async def delete(self, name: str) -> None:
        """Delete a Job, whatever runs in it. Logs what cannot be deleted."""
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                await self.jobs.delete(name)
        except (PlatformError, TimeoutError) as error:
            log.warning("a sandbox is left for the controller to remove", job=name, error=str(error))

    async def close(self) -> None:
        """Wait for what is still being dismissed."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
