"""The sandbox as a Kubernetes Job: a pod of its own for a command, for all commands of a run, or started beforehand.

The pod has no network, no token and no credential: what it needs comes through the API server, on a stream that the
worker opens to the runner inside (`worker.sandbox.kubernetes.pod`). Over it go the files, the command, its output and
what it changed. The stream may break at any moment; the command goes on, and the next stream begins where the last one
ended.

A worker that dies leaves its Job behind. Whoever has the run next finds it by its labels: where the same command still
runs in it, or has ended and was not fetched, it is taken over; all else is deleted. What nobody takes over the
controller removes. So a worker that is asked to end leaves what outlasts its grace running.

Three ways to a pod, in this order: the run's own (`per_run`), one started ahead (`pool`), a new one. A pod serves one
run; one whose command did not succeed serves no other command. Steps that ask for limits of their own get a new one.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from backplane.domain import sandbox_labels
from backplane.errors import PlatformError, Superseded, Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import end, in_thread, uninterrupted
from worker.sandbox.base import (
    Call,
    Command,
    Ending,
    Isolation,
    Limits,
    NoticeSink,
    Outcome,
    OutputSink,
    Sandbox,
    SandboxError,
    SandboxQuotaExceeded,
)
from worker.sandbox.kubernetes import manifest as job
from worker.sandbox.kubernetes.channel import NotUnderstood
from worker.sandbox.kubernetes.jobs import WorkerJobs, open_worker_jobs
from worker.sandbox.kubernetes.manifest import JobSettings
from worker.sandbox.kubernetes.pod.frames import ENDED, KILL, QUIT, frame
from worker.sandbox.kubernetes.session import POD_END_SECONDS, Conversation, Pod, digest

log = structlog.get_logger(__name__)

KIND = "kubernetes"
TRANSFER_SECONDS = 600.0
KILL_SECONDS = 2.0
DELETE_SECONDS = 10.0
REFILL_PAUSE_SECONDS = 5.0
LOOK_AFTER_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Starts:
    """What is counted: how a sandbox was come by (cold, warm, reused, adopted) and in what time; what went wrong."""

    started: Callable[[str, str, float], None]
    failed: Callable[[str, str], None]
    ready: Callable[[int], None]


class KubernetesSandbox(Sandbox):
    """Made by `open_kubernetes_sandbox`. `own_limits` are those of a command that asks for none of its own: what pods
    are started with ahead of their use."""

    isolation = Isolation(KIND, isolated=True)

    def __init__(
        self,
        cluster: WorkerJobs,
        jobs: JobSettings,
        starts: Starts,
        *,
        own_limits: Limits,
        start_seconds: float,
        idle_seconds: float,
        longest_run_seconds: float,
        reuses: bool,
        pool_size: int,
    ) -> None:
        self._cluster = cluster
        self._jobs = jobs
        self._starts = starts
        self._own_limits = own_limits
        self._start_seconds = start_seconds
        self._idle_seconds = idle_seconds
        self._longest_run_seconds = longest_run_seconds
        self._reuses = reuses
        self._pool_size = pool_size
        self._pool: list[Pod] = []
        self._kept: dict[str, list[Pod]] = {}
        self._left: dict[str, dict[str, Pod]] = {}
        self._looking: dict[str, asyncio.Lock] = {}
        self._cut_off: dict[Call, Pod] = {}
        self._made_for_run: dict[str, int] = {}
        self._is_leaving = False
        self._taken = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()

    # --- the port ---

    async def run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        try:
            pod = await self._pod_for(command, folder, notice)
        except SandboxError as error:
            self._starts.failed(KIND, error.code)
            raise
        conversation = Conversation(self._cluster, pod, command, folder, output, notice)
        try:
            outcome = await conversation.hold()
        except Unavailable:
            # The command may still run: the same call goes on with it.
            await pod.disconnect()
            self._cut_off[command.call] = pod
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._is_leaving:
                await uninterrupted(pod.disconnect())
                raise
            if isinstance(error, SandboxError):
                self._starts.failed(KIND, error.code)
            await uninterrupted(self._remove(pod, command.call.run_id))
            raise
        if self._reuses and outcome.ending is Ending.EXITED and outcome.exit_code == 0 and pod.mirror.is_exact:
            pod.is_idle = True
            self._kept.setdefault(command.call.run_id, []).append(pod)
        else:
            self._later(self._dismiss(pod))
        return outcome

    async def release(self, run_id: str) -> None:
        self._made_for_run.pop(run_id, None)
        for call in [call for call in self._cut_off if call.run_id == run_id]:
            pod = self._cut_off.pop(call)
            if not self._is_leaving:
                await self._remove(pod, run_id)
        self._looking.pop(run_id, None)
        for pod in self._left.pop(run_id, {}).values():
            if not self._is_leaving:
                await self._remove(pod, run_id)
        for kept in self._kept.pop(run_id, []):
            self._later(self._dismiss(kept))

    def leave(self) -> None:
        self._is_leaving = True

    async def close(self) -> None:
        pods = [*self._pool, *(pod for kept in self._kept.values() for pod in kept)]
        self._pool.clear()
        self._kept.clear()
        await asyncio.gather(*(self._dismiss(pod) for pod in pods))
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- ways to a pod ---

    async def _pod_for(self, command: Command, folder: Path, notice: NoticeSink) -> Pod:
        began = time.monotonic()
        start, pod = await self._found(command, folder, notice)
        self._starts.started(KIND, start, time.monotonic() - began)
        return pod

    async def _found(self, command: Command, folder: Path, notice: NoticeSink) -> tuple[str, Pod]:
        call = command.call
        if cut_off := self._cut_off.pop(call, None):
            return "adopted", cut_off
        usual = self._is_usual(command.limits)
        while usual and (kept := self._take_kept(call.run_id)):
            try:
                await self._answers(kept)
            except (SandboxError, NotUnderstood, Superseded, TimeoutError):
                await self._remove(kept, call.run_id)  # it was deleted, or its node lost, since the last command
            except BaseException:
                await uninterrupted(self._remove(kept, call.run_id))
                raise
            else:
                return "reused", kept
        if call.generation > 1 and (adopted := await self._adopt(command, folder, notice)):
            return "adopted", adopted
        labels = (job.run_labels if self._reuses else job.step_labels)(call, self._jobs.worker_id)
        while usual and (warm := self._take_warm()):
            try:
                await asyncio.gather(
                    self._cluster.relabel(warm.job, {**labels, sandbox_labels.POOL: None}), self._answers(warm)
                )
            except (SandboxError, NotUnderstood, TimeoutError):
                await self._remove(warm, "")  # it was deleted, or preempted, while it waited
            except BaseException:
                await uninterrupted(self._remove(warm, ""))
                raise
            else:
                warm.generation = call.generation
                return "warm", warm
        return "cold", await self._start(command, notice)

    async def _start(self, command: Command, notice: NoticeSink) -> Pod:
        call = command.call
        if self._reuses and self._is_usual(command.limits):
            number = self._made_for_run[call.run_id] = self._made_for_run.get(call.run_id, 0) + 1
            name, labels = job.run_name(call, number), job.run_labels(call, self._jobs.worker_id)
            deadline = self._start_seconds + self._longest_run_seconds
        else:
            name, labels = job.step_name(call), job.step_labels(call, self._jobs.worker_id)
            deadline = self._start_seconds + command.limits.wall_seconds + TRANSFER_SECONDS
        try:
            await self._create(job.manifest(name, labels, command.limits, self._jobs, deadline), notice)
            pod = await self._cluster.started(name, self._start_seconds, notice)
        except Unavailable:
            raise
        except BaseException:
            await uninterrupted(self._delete(name))
            raise
        return Pod(name, pod, call.generation)

    async def _create(self, manifest: dict[str, Any], notice: NoticeSink) -> None:
        """A quota that is used up comes free as others end, so it is waited for as a place on a node is."""
        until, waits, told = time.monotonic() + self._start_seconds, pauses(), False
        while True:
            try:
                await self._cluster.create(manifest)
                return
            except SandboxQuotaExceeded as error:
                if time.monotonic() >= until:
                    raise
                if not told:
                    notice(error.message)
                    told = True
            await asyncio.sleep(next(waits))

    async def _adopt(self, command: Command, folder: Path, notice: NoticeSink) -> Pod | None:
        """The pod in which a worker that was lost began this very command. Several commands of the run may ask at once:
        the first looks for all of them."""
        call = command.call
        async with self._looking.setdefault(call.run_id, asyncio.Lock()):
            if call.run_id not in self._left:
                self._left[call.run_id] = await self._taken_over(call)
        pod = self._left[call.run_id].pop(digest(command), None)
        if pod is None:
            return None
        pod.mirror.assume(await in_thread(pod.mirror.look, folder))
        notice("a worker was lost; its sandbox still has the step and is taken over")
        return pod

    async def _taken_over(self, call: Call) -> dict[str, Pod]:
        """What commands of lost workers still run in, by command; what no step asks for goes when the run leaves. All
        else that was left of the run goes now."""
        left: dict[str, Pod] = {}
        for found in await self._cluster.find({sandbox_labels.RUN: sandbox_labels.label_value(call.run_id)}):
            if found.is_finished or int(found.labels.get(sandbox_labels.GENERATION, "0")) >= call.generation:
                continue
            command, pod = await self._peek(found.name, call)
            if pod is not None and command not in left:
                left[command] = pod
            else:
                await self._delete(found.name)
        return left

    async def _peek(self, name: str, call: Call) -> tuple[str, Pod | None]:
        """The command in it, and the pod where that goes on or has ended well."""
        labels = {
            sandbox_labels.WORKER: sandbox_labels.label_value(self._jobs.worker_id),
            sandbox_labels.GENERATION: str(call.generation),
        }
        try:
            await self._cluster.relabel(name, labels)
            pod = Pod(name, await self._cluster.started(name, POD_END_SECONDS, lambda line: None), call.generation)
            channel = await pod.connect(self._cluster)
            state = await channel.greet(generation=call.generation, call="", offset=0, peek=True)
            await pod.disconnect()
        except (SandboxError, NotUnderstood, Superseded, Unavailable) as error:
            log.info("cannot take a sandbox over", job=name, error=str(error))
            return "", None
        goes_on = state.get("state") == "running" or (state.get("state") == "ended" and state.get("exit_code") == 0)
        if not goes_on:
            return "", None
        pod.used = True
        return str(state.get("call")), pod

    def _is_usual(self, limits: Limits) -> bool:
        usual = self._own_limits
        return (limits.memory_bytes, limits.cpus) == (usual.memory_bytes, usual.cpus)

    # --- ends of a pod ---

    async def _dismiss(self, pod: Pod) -> None:
        """Let its first process end: the Job is then finished, and stays for a while to be looked at."""
        try:
            async with asyncio.timeout(KILL_SECONDS):
                channel = await pod.connect(self._cluster)
                if not pod.used:
                    await channel.greet(generation=pod.generation, call="", offset=0)
                await channel.send(frame(QUIT))
                with suppress(Unavailable):
                    while True:
                        await channel.hear()
        except (PlatformError, NotUnderstood, TimeoutError) as error:
            log.info("deleting a sandbox that does not end", job=pod.job, error=str(error))
            await self._delete(pod.job)
        finally:
            await pod.disconnect()
            self._cluster.let_go(pod.job)

    async def _remove(self, pod: Pod, run_id: str) -> None:
        """End what runs in it at once, and its Job, unless another worker has taken it over."""
        if pod.channel:
            with suppress(PlatformError, NotUnderstood, TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    await pod.channel.send(frame(KILL))
                    while (await pod.channel.hear())[0] != ENDED:
                        pass
        await pod.disconnect()
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                mine = {sandbox_labels.GENERATION: str(pod.generation)} if run_id else {}
                of_run = {sandbox_labels.RUN: sandbox_labels.label_value(run_id)} if run_id else {}
                if not run_id or any(found.name == pod.job for found in await self._cluster.find({**of_run, **mine})):
                    await self._cluster.delete(pod.job)
        except (PlatformError, TimeoutError) as error:
            log.warning("a sandbox is left for the controller to remove", job=pod.job, error=str(error))
        finally:
            self._cluster.let_go(pod.job)

    async def _delete(self, name: str) -> None:
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                await self._cluster.delete(name)
        except (PlatformError, TimeoutError) as error:
            log.warning("a sandbox is left for the controller to remove", job=name, error=str(error))

    # --- the pool ---

    def _take_kept(self, run_id: str) -> Pod | None:
        """The one that was used last: its files are the nearest to the run's."""
        kept = self._kept.get(run_id)
        return kept.pop() if kept else None

    def _take_warm(self) -> Pod | None:
        while self._pool:
            pod = self._pool.pop(0)
            self._taken.set()
            self._starts.ready(len(self._pool))
            if pod.channel and not pod.channel.is_closed:
                return pod
            self._later(self._dismiss(pod))
        return None

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def keep_pool(self) -> None:
        """Keep so many pods started as the pool is to have. Never returns."""
        while True:
            self._taken.clear()
            await asyncio.gather(*(self._look_after(pod) for pod in list(self._pool)))
            missing = self._pool_size - len(self._pool)
            made = await asyncio.gather(*(self._warm_up() for _ in range(missing)), return_exceptions=True)
            failures = [failure for failure in made if isinstance(failure, BaseException)]
            self._starts.ready(len(self._pool))
            for failure in failures:
                if not isinstance(failure, PlatformError):
                    raise failure
            if failures:
                log.warning("the pool of sandboxes cannot be filled", missing=len(failures), error=str(failures[0]))
            with suppress(TimeoutError):
                async with asyncio.timeout(REFILL_PAUSE_SECONDS if failures else LOOK_AFTER_SECONDS):
                    await self._taken.wait()
                if failures:
                    await asyncio.sleep(REFILL_PAUSE_SECONDS)

    async def _look_after(self, pod: Pod) -> None:
        """A connection that is silent for long is cut by whatever lies between; who is asked now and then keeps it."""
        self._pool.remove(pod)
        if time.monotonic() - pod.born < self._idle_seconds:
            with suppress(PlatformError, NotUnderstood, TimeoutError):
                await self._answers(pod)
                self._pool.append(pod)
                return
        self._later(self._dismiss(pod))

    async def _answers(self, pod: Pod) -> None:
        """Raises what is wrong with it: nobody notices a connection that ends while nobody listens."""
        async with asyncio.timeout(KILL_SECONDS):
            channel = await pod.connect(self._cluster)
            try:
                await channel.greet(generation=pod.generation, call="", offset=0, peek=True)
            except Unavailable as error:
                raise NotUnderstood(error.message) from error

    async def _warm_up(self) -> None:
        name = job.warm_name(str(uuid.uuid4()))
        labels = job.warm_labels(self._jobs.worker_id)
        deadline = self._start_seconds + self._idle_seconds + self._longest_run_seconds
        try:
            await self._cluster.create(job.manifest(name, labels, self._own_limits, self._jobs, deadline))
            pod = Pod(name, await self._cluster.started(name, self._start_seconds, lambda line: None), 0)
            await self._connected(pod)
        except BaseException:
            await uninterrupted(self._delete(name))
            raise
        self._pool.append(pod)

    async def _connected(self, pod: Pod) -> None:
        """A container that is said to run may for a moment not take a process yet."""
        until, waits = time.monotonic() + KILL_SECONDS, pauses()
        while True:
            try:
                await pod.connect(self._cluster)
                return
            except Unavailable:
                await pod.disconnect()
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(next(waits))


@asynccontextmanager
async def open_kubernetes_sandbox(
    jobs: JobSettings,
    starts: Starts,
    *,
    own_limits: Limits,
    start_seconds: float,
    idle_seconds: float,
    longest_run_seconds: float,
    reuses: bool,
    pool_size: int,
    kubeconfig: str = "",
) -> AsyncIterator[KubernetesSandbox]:
    """Times in seconds. The cluster is the one that the process runs in, else that of `kubeconfig` or, where it is
    empty, of KUBECONFIG. Raises Unavailable when there is none."""
    async with open_worker_jobs(jobs.namespace, jobs.worker_id, kubeconfig) as cluster:
        sandbox = KubernetesSandbox(
            cluster,
            jobs,
            starts,
            own_limits=own_limits,
            start_seconds=start_seconds,
            idle_seconds=idle_seconds,
            longest_run_seconds=longest_run_seconds,
            reuses=reuses,
            pool_size=pool_size,
        )
        keeping = asyncio.create_task(sandbox.keep_pool(), name="sandbox pool") if pool_size else None
        try:
            yield sandbox
        finally:
            if keeping:
                await end(keeping)
            await sandbox.close()
