"""Which pod a command gets, and what becomes of it between two commands.

Five ways to a pod, in this order: the one in which this very call was cut off, the run's own (where pods are reused),
the one in which a worker that was lost began the same command, one that was started ahead, a new one. A pod serves one
run. Commands that ask for limits of their own get a new one.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from backplane.domain import sandbox_labels
from backplane.errors import Superseded, Unavailable
from backplane.process.tasks import in_thread, uninterrupted
from worker.sandbox.base import Call, Command, Limits, NoticeSink, SandboxError
from worker.sandbox.kubernetes import manifest as job
from worker.sandbox.kubernetes.channel import NotUnderstood
from worker.sandbox.kubernetes.pods import Pod, Pods
from worker.sandbox.kubernetes.session import POD_END_SECONDS, digest
from worker.sandbox.kubernetes.warm_pool import WarmPool

TRANSFER_SECONDS = 600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Times in seconds. `own_limits` are those of a command that asks for none of its own: what pods are started with
    ahead of their use. `idle_seconds`: how long a pod waits for a command; `reuses`: whether the commands of a run
    follow one another in one pod; `pool_size`: how many are started ahead."""

    own_limits: Limits
    start_seconds: float
    idle_seconds: float
    longest_run_seconds: float
    reuses: bool
    pool_size: int

    def are_usual(self, limits: Limits) -> bool:
        """Whether a pod that was made with the usual limits serves a command with these."""
        usual = self.own_limits
        return (limits.memory_bytes, limits.cpus) == (usual.memory_bytes, usual.cpus)


class PodPool:
    """The pods that one worker has in use, or keeps for a run."""

    def __init__(self, pods: Pods, warm: WarmPool, settings: PodSettings) -> None:
        self.warm = warm
        self.kept: dict[str, list[Pod]] = {}
        """Of each run the pods that wait for its next command; the one that was used last comes last."""
        self._pods = pods
        self._settings = settings
        self._cut_off: dict[Call, Pod] = {}
        self._abandoned: dict[str, dict[str, Pod]] = {}
        """Of each run the pods of lost workers in which a command goes on, by the command."""
        self._searching: dict[str, asyncio.Lock] = {}
        self._made_for_run: dict[str, int] = {}

    async def take(self, command: Command, folder: Path, notice: NoticeSink) -> tuple[str, Pod]:
        """A pod for the command, and the way to it: adopted, reused, warm or cold. Raises SandboxError when none can be
        had, and Unavailable."""
        call = command.call
        if cut_off := self._cut_off.pop(call, None):
            return "adopted", cut_off
        usual = self._settings.are_usual(command.limits)
        if usual and (kept := await self._reuse(call)):
            return "reused", kept
        if call.generation > 1 and (adopted := await self._adopt(command, folder, notice)):
            return "adopted", adopted
        if usual and (warm := await self._claim_warm(call)):
            return "warm", warm
        return "cold", await self._start(command, usual, notice)

    def keep(self, pod: Pod, run_id: str) -> None:
        """The command has succeeded, and its files were fetched: the pod may take the next one of the run."""
        pod.is_idle = True
        self.kept.setdefault(run_id, []).append(pod)

    def cut_off(self, pod: Pod, call: Call) -> None:
        """The connection is lost, and the command may still run: the same call goes on with it."""
        self._cut_off[call] = pod

    async def release(self, run_id: str, *, lets_run_on: bool) -> None:
        """This worker no longer has the run. Unless `lets_run_on`, commands that still run are killed."""
        self._made_for_run.pop(run_id, None)
        self._searching.pop(run_id, None)
        running = [self._cut_off.pop(call) for call in list(self._cut_off) if call.run_id == run_id]
        running += self._abandoned.pop(run_id, {}).values()
        if not lets_run_on:
            for pod in running:
                await self._pods.remove(pod, run_id)
        for pod in self.kept.pop(run_id, []):
            self._pods.dismiss_later(pod)

    async def close(self) -> None:
        kept = [pod for pods in self.kept.values() for pod in pods]
        self.kept.clear()
        await asyncio.gather(self.warm.close(), *(self._pods.dismiss(pod) for pod in kept))
        await self._pods.close()

    # --- ways to a pod ---

    async def _reuse(self, call: Call) -> Pod | None:
        """A pod of the run. The one that was used last comes first: its files differ least from the run's."""
        kept = self.kept.get(call.run_id)
        while kept:
            pod = kept.pop()
            # It may have been deleted, or its node lost, since the last command.
            async with self._removed_if_broken(pod, call.run_id) as checked:
                await self._pods.check(pod)
            if checked.is_well:
                return pod
        return None

    async def _claim_warm(self, call: Call) -> Pod | None:
        labels = self._labels(call) | {sandbox_labels.POOL: None}
        while pod := self.warm.take():
            # It may have been deleted, or preempted, while it waited.
            async with self._removed_if_broken(pod, "") as checked:
                await asyncio.gather(self._pods.jobs.relabel(pod.job, labels), self._pods.check(pod))
            if checked.is_well:
                pod.generation = call.generation
                return pod
        return None

    @asynccontextmanager
    async def _removed_if_broken(self, pod: Pod, run_id: str) -> "AsyncIterator[_Checked]":
        """Remove the pod when the check inside fails, or is cancelled."""
        checked = _Checked()
        try:
            yield checked
            checked.is_well = True
        except (SandboxError, NotUnderstood, Superseded, TimeoutError):
            await self._pods.remove(pod, run_id)
        except BaseException:
            await uninterrupted(self._pods.remove(pod, run_id))
            raise

    def _labels(self, call: Call) -> dict[str, str | None]:
        made = job.run_labels if self._settings.reuses else job.step_labels
        return dict(made(call, self._pods.settings.worker_id))

    async def _start(self, command: Command, usual: bool, notice: NoticeSink) -> Pod:
        call, worker_id = command.call, self._pods.settings.worker_id
        if self._settings.reuses and usual:
            number = self._made_for_run[call.run_id] = self._made_for_run.get(call.run_id, 0) + 1
            name, labels = job.run_name(call, number), job.run_labels(call, worker_id)
            deadline = self._settings.longest_run_seconds
        else:
            name, labels = job.step_name(call), job.step_labels(call, worker_id)
            deadline = command.limits.wall_seconds + TRANSFER_SECONDS
        return Pod(name, await self._pods.start(name, labels, command.limits, deadline, notice), call.generation)

    # --- what lost workers have left ---

    async def _adopt(self, command: Command, folder: Path, notice: NoticeSink) -> Pod | None:
        """The pod in which a worker that was lost began this very command. Several commands of the run may ask at once:
        the first one searches for all of them."""
        call = command.call
        async with self._searching.setdefault(call.run_id, asyncio.Lock()):
            if call.run_id not in self._abandoned:
                self._abandoned[call.run_id] = await self._take_over(call)
        pod = self._abandoned[call.run_id].pop(digest(command), None)
        if pod is None:
            return None
        pod.files.assume(await in_thread(pod.files.look, folder))
        notice("a worker was lost; its sandbox still has the step and is taken over")
        return pod

    async def _take_over(self, call: Call) -> dict[str, Pod]:
        """The pods in which commands of lost workers go on, by the command; those that no step asks for go when the run
        is released. All else that was left of the run is deleted now."""
        found: dict[str, Pod] = {}
        run = {sandbox_labels.RUN: sandbox_labels.label_value(call.run_id)}
        for left in await self._pods.jobs.find(run):
            if left.is_finished or int(left.labels.get(sandbox_labels.GENERATION, "0")) >= call.generation:
                continue
            command, pod = await self._claim(left.name, call)
            if pod is not None and command not in found:
                found[command] = pod
            else:
                await self._pods.delete(left.name)
        return found

    async def _claim(self, name: str, call: Call) -> tuple[str, Pod | None]:
        """The command in a Job of a lost worker, and its pod, where that command goes on or has ended well."""
        jobs = self._pods.jobs
        labels = {
            sandbox_labels.WORKER: sandbox_labels.label_value(self._pods.settings.worker_id),
            sandbox_labels.GENERATION: str(call.generation),
        }
        try:
            await jobs.relabel(name, labels)
            pod = Pod(name, await jobs.started(name, POD_END_SECONDS, lambda line: None), call.generation)
            channel = await pod.connect(jobs)
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


@dataclass(slots=True)
class _Checked:
    is_well: bool = False
