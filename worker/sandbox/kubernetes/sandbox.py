"""The sandbox as a Kubernetes Job: a pod of its own for a command, for all commands of a run, or started beforehand.

The pod has no network, no token and no credential: what it needs comes through the API server, on a stream that the
worker opens to the runner inside (`worker.sandbox.kubernetes.pod`). Over it go the files, the command, its output and
what it changed. The stream may break at any moment; the command goes on, and the next stream begins where the last one
ended.

A worker that dies leaves its Job behind. The next worker that carries out the run finds it by its labels: where the
same command still runs in it, or has ended and was not fetched, it is taken over; all else is deleted. The controller
removes the Jobs that no worker takes over. So a worker that drains lets a command run on that takes longer than its
grace period.

This is the adapter to the port of all sandboxes. `pool` decides which pod a command gets, `session` sends and receives,
and `pods` starts and ends pods.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from backplane.errors import Unavailable
from backplane.process.tasks import end, uninterrupted
from worker.sandbox.base import (
    Command,
    Ending,
    Isolation,
    NoticeSink,
    Outcome,
    OutputSink,
    Sandbox,
    SandboxError,
)
from worker.sandbox.kubernetes.jobs import WorkerJobs, open_worker_jobs
from worker.sandbox.kubernetes.manifest import JobSettings
from worker.sandbox.kubernetes.pods import Pod, Pods
from worker.sandbox.kubernetes.pool import PodPool, PodSettings
from worker.sandbox.kubernetes.session import ExecSession
from worker.sandbox.kubernetes.warm_pool import WarmPool

KIND = "kubernetes"


@dataclass(frozen=True, slots=True)
class Starts:
    """What is counted: how a command got its sandbox (cold, warm, reused, adopted) and in what time; what went wrong;
    how many pods wait in the pool."""

    started: Callable[[str, str, float], None]
    failed: Callable[[str, str], None]
    ready: Callable[[int], None]


class KubernetesSandbox(Sandbox):
    """Made by `open_kubernetes_sandbox`."""

    isolation = Isolation(KIND, isolated=True)

    def __init__(self, jobs: WorkerJobs, job_settings: JobSettings, settings: PodSettings, starts: Starts) -> None:
        self.jobs = jobs
        self._settings = settings
        self._starts = starts
        self._pods = Pods(jobs, job_settings, settings.start_seconds)
        warm = WarmPool(
            self._pods,
            settings.pool_size,
            settings.own_limits,
            idle_seconds=settings.idle_seconds,
            run_seconds=settings.longest_run_seconds,
            ready=starts.ready,
        )
        self.pool = PodPool(self._pods, warm, settings)
        self._is_detached = False

    async def run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        pod = await self._take(command, folder, notice)
        session = ExecSession(self.jobs, pod, command, folder, output, notice)
        run_id = command.call.run_id
        try:
            outcome = await session.run()
        except Unavailable:
            await pod.disconnect()
            self.pool.cut_off(pod, command.call)
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._is_detached:
                await uninterrupted(pod.disconnect())
                raise
            if isinstance(error, SandboxError):
                self._starts.failed(KIND, error.code)
            await uninterrupted(self._pods.remove(pod, run_id))
            raise
        has_succeeded = outcome.ending is Ending.EXITED and outcome.exit_code == 0
        if self._settings.reuses and has_succeeded and pod.files.is_exact:
            self.pool.keep(pod, run_id)
        else:
            self._pods.dismiss_later(pod)
        return outcome

    async def _take(self, command: Command, folder: Path, notice: NoticeSink) -> Pod:
        began = time.monotonic()
        try:
            start, pod = await self.pool.take(command, folder, notice)
        except SandboxError as error:
            self._starts.failed(KIND, error.code)
            raise
        self._starts.started(KIND, start, time.monotonic() - began)
        return pod

    async def release(self, run_id: str) -> None:
        await self.pool.release(run_id, lets_run_on=self._is_detached)

    def detach(self) -> None:
        self._is_detached = True

    async def close(self) -> None:
        await self.pool.close()


@asynccontextmanager
async def open_kubernetes_sandbox(
    job_settings: JobSettings, settings: PodSettings, starts: Starts, *, kubeconfig: str = ""
) -> AsyncIterator[KubernetesSandbox]:
    """The cluster is the one that the process runs in, else that of `kubeconfig` or, where it is empty, of KUBECONFIG.
    Raises Unavailable when there is none."""
    async with open_worker_jobs(job_settings.namespace, job_settings.worker_id, kubeconfig) as jobs:
        sandbox = KubernetesSandbox(jobs, job_settings, settings, starts)
        filling = None
        if settings.pool_size:
            filling = asyncio.create_task(sandbox.pool.warm.keep_filled(), name="sandbox pool")
        try:
            yield sandbox
        finally:
            if filling:
                await end(filling)
            await sandbox.close()
