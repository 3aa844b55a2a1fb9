"""Pods that are started ahead of their use, so that a command finds one that waits for it.

Each serves one run: what is taken is not given back, and another one is started in its place. One that waits too long
is dismissed before its Job's deadline could end it.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import structlog

from backplane.errors import PlatformError, Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import uninterrupted
from worker.sandbox.base import Limits
from worker.sandbox.kubernetes import manifest as job
from worker.sandbox.kubernetes.channel import NotUnderstood
from worker.sandbox.kubernetes.pods import KILL_SECONDS, Pod, Pods

REFILL_PAUSE_SECONDS = 5.0
CHECK_SECONDS = 15.0

log = structlog.get_logger(__name__)


class WarmPool:
    """`size` pods with these limits. One may wait for `idle_seconds`, and serve for `run_seconds` after that. `ready`
    is called with how many wait, whenever that changes."""

    def __init__(
        self,
        pods: Pods,
        size: int,
        limits: Limits,
        *,
        idle_seconds: float,
        run_seconds: float,
        ready: Callable[[int], None],
    ) -> None:
        self.size = size
        self.waiting: list[Pod] = []
        self._pods = pods
        self._limits = limits
        self._idle_seconds = idle_seconds
        self._run_seconds = run_seconds
        self._ready = ready
        self._taken = asyncio.Event()

    def take(self) -> Pod | None:
        """The pod that has waited longest and still has a connection; None when no pod waits."""
        while self.waiting:
            pod = self.waiting.pop(0)
            self._taken.set()
            self._ready(len(self.waiting))
            if pod.channel and not pod.channel.is_closed:
                return pod
            self._pods.dismiss_later(pod)
        return None

    async def keep_filled(self) -> None:
        """Start a pod for each one that is missing. Never returns."""
        while True:
            self._taken.clear()
            await asyncio.gather(*(self._check(pod) for pod in list(self.waiting)))
            missing = self.size - len(self.waiting)
            made = await asyncio.gather(*(self._start() for _ in range(missing)), return_exceptions=True)
            failures = [failure for failure in made if isinstance(failure, BaseException)]
            self._ready(len(self.waiting))
            for failure in failures:
                if not isinstance(failure, PlatformError):
                    raise failure
            if failures:
                log.warning("the pool of sandboxes cannot be filled", missing=len(failures), error=str(failures[0]))
            with suppress(TimeoutError):
                async with asyncio.timeout(REFILL_PAUSE_SECONDS if failures else CHECK_SECONDS):
                    await self._taken.wait()
                if failures:
                    await asyncio.sleep(REFILL_PAUSE_SECONDS)

    async def close(self) -> None:
        pods, self.waiting = self.waiting, []
        await asyncio.gather(*(self._pods.dismiss(pod) for pod in pods))

    async def _check(self, pod: Pod) -> None:
        """A connection that is silent for long is cut by whatever lies between, so each pod is asked now and then."""
        self.waiting.remove(pod)
        if time.monotonic() - pod.born < self._idle_seconds:
            with suppress(PlatformError, NotUnderstood, TimeoutError):
                await self._pods.check(pod)
                self.waiting.append(pod)
                return
        self._pods.dismiss_later(pod)

    async def _start(self) -> None:
        name = job.warm_name(str(uuid.uuid4()))
        labels = job.warm_labels(self._pods.settings.worker_id)
        try:
            deadline = self._idle_seconds + self._run_seconds
            pod = Pod(name, await self._pods.start(name, labels, self._limits, deadline, None), 0)
            await self._connect(pod)
        except BaseException:
            await uninterrupted(self._pods.delete(name))
            raise
        self.waiting.append(pod)

    async def _connect(self, pod: Pod) -> None:
        """A container that runs, as the API server says, may for a moment not take a process yet."""
        until, waits = time.monotonic() + KILL_SECONDS, pauses()
        while True:
            try:
                await pod.connect(self._pods.jobs)
                return
            except Unavailable:
                await pod.disconnect()
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(next(waits))
