"""A command in a pod, from the first file that goes in to the last that comes out, over as many streams as it takes.

A stream that breaks is opened again; the runner reports how far the command is, and the session goes on there. Whenever
a stream breaks the API server is asked whether the pod itself has ended.
"""

import asyncio
import errno
import hashlib
import json
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

from backplane.domain.sizes import shortened
from backplane.errors import InvalidInput, Superseded, Unavailable
from backplane.process.retrying import pauses
from backplane.process.tasks import in_thread
from worker.sandbox.base import (
    EGRESS_VARIABLE,
    EVERYWHERE,
    UMASK,
    Command,
    Ending,
    NoticeSink,
    Outcome,
    OutputSink,
    SandboxError,
    SandboxEvicted,
)
from worker.sandbox.kubernetes.channel import Channel, NotUnderstood, parsed
from worker.sandbox.kubernetes.jobs import WorkerJobs
from worker.sandbox.kubernetes.pod.frames import (
    BEGIN,
    CHUNK,
    COLLECT,
    DONE,
    EGRESS,
    ENDED,
    GO,
    HEADER,
    INPUT,
    MAX_PAYLOAD,
    OUTPUT,
    WITH_ATTRIBUTES,
    frame,
    json_frame,
)
from worker.sandbox.kubernetes.pod_state import EndReason
from worker.sandbox.kubernetes.pods import Pod
from worker.sandbox.kubernetes.sync import FileSync, TooMuch
from worker.sandbox.kubernetes.tunnels import KINDS as TUNNEL_KINDS
from worker.sandbox.kubernetes.tunnels import Tunnels
from worker.sandbox.local.process import COMMAND_TOO_LONG
from worker.sandbox.system_calls import NUMBERS, compiled

LOST_SECONDS = 30.0
"""A stream that cannot be opened again for so long is an outage; the caller may then repeat the call."""
POD_END_SECONDS = 3.0
"""After a stream broke, how long the API server may take to report that the pod has ended."""
OVERDUE_SECONDS = 30.0
"""The runner ends a command in time. When it is late by so much, it counts as broken."""
BATCH_BYTES = 1024 * 1024
_FILTERS = {machine: b64encode(program).decode() for machine in NUMBERS if (program := compiled(machine)) is not None}
"""By machine: which system calls the kernel refuses to a pod's commands, whatever the cluster's own filter allows."""


class ExecSession:
    """One command in one pod, over as many streams as it takes."""

    def __init__(
        self, jobs: WorkerJobs, pod: Pod, command: Command, folder: Path, output: OutputSink, notice: NoticeSink
    ) -> None:
        self._jobs = jobs
        self._pod = pod
        self._command = command
        self._folder = folder
        self._output = output
        self._notice = notice
        self._call = digest(command)
        self._offset = 0
        self._began = time.monotonic()
        self._overdue: float | None = None

    async def run(self) -> Outcome:
        """The command's outcome, with its changes in the folder when it succeeded."""
        waits, lost_at = pauses(), None
        while True:
            offset = self._offset
            try:
                return await self._attempt(await self._pod.connect(self._jobs))
            except NotUnderstood as error:
                raise SandboxError(f"the sandbox does not keep to its protocol: {error}") from error
            except Unavailable as error:
                await self._pod.disconnect()
                if ended := await self._outcome_of_ended_pod():
                    return ended
                if lost_at is None or self._offset != offset:
                    waits, lost_at = pauses(), time.monotonic()
                if time.monotonic() - lost_at > LOST_SECONDS:
                    raise
                pause = next(waits)
                if pause > 1:
                    self._notice(f"{error.message}; trying again in {pause:.1f} s")
                await asyncio.sleep(pause)
            except TimeoutError:
                detail = f"it ran longer than {self._command.limits.wall_seconds:g} seconds and did not answer any more"
                return Outcome(137, Ending.TIMEOUT, time.monotonic() - self._began, detail)

    async def _attempt(self, channel: Channel) -> Outcome:
        call = self._command.call
        mine = "" if self._pod.is_idle else self._call
        state = await channel.greet(generation=call.generation, call=mine, offset=self._offset)
        if state.get("call") == mine and state.get("state") in ("running", "ended"):
            self._go_on_at(int(state.get("from") or 0))
        elif state.get("state") == "running":
            raise NotUnderstood("another command runs in it")
        else:
            await self._give(channel, clear=self._pod.used and state.get("state") != "ended")
        self._pod.used = True
        if self._overdue is None:
            self._overdue = time.monotonic() + self._command.limits.wall_seconds + OVERDUE_SECONDS
        async with asyncio.timeout(max(self._overdue - time.monotonic(), 0)):
            ended = await self._follow(channel)
        outcome = self._outcome(ended)
        if state.get("attributes") is not True:
            self._pod.files.is_exact = False  # of an older release: it does not know times, modes and folders
        if outcome.exit_code == 0 and outcome.ending is Ending.EXITED:
            try:
                return replace(outcome, not_kept=await self._collect(channel))
            except TooMuch as too_much:
                return Outcome(137, Ending.DISK, outcome.duration_seconds, f"the folder holds {too_much.what}")
        return outcome

    def _go_on_at(self, offset: int) -> None:
        if offset > self._offset:
            self._notice(f"{offset - self._offset:,} bytes of output are lost: only the last of it is kept")
            self._offset = offset

    async def _give(self, channel: Channel, *, clear: bool) -> None:
        command = self._command
        if clear:
            self._pod.files = FileSync()
        self._pod.used = True
        limits = command.limits
        egress = {EGRESS_VARIABLE: EGRESS} if command.egress else {}
        begin = json_frame(
            BEGIN,
            {
                "call": self._call,
                "clear": clear,
                "argv": command.argv,
                "environment": {**EVERYWHERE, **command.environment, **egress},
                "umask": UMASK,
                "stdin": len(command.stdin),
                "egress": command.egress is not None,
                "filters": _FILTERS,
                "limits": {
                    "wall_seconds": limits.wall_seconds,
                    "cpu_seconds": limits.cpu_seconds,
                    "processes": limits.processes,
                    "file_bytes": limits.file_bytes,
                    "disk_bytes": limits.disk_bytes,
                    "files": limits.files,
                },
            },
        )
        if len(begin) > MAX_PAYLOAD:
            raise InvalidInput(COMMAND_TOO_LONG)
        await channel.send(begin)
        self._pod.is_idle = False
        async for piece in self._pod.files.outgoing(self._folder):
            await channel.send(piece)
        for start in range(0, len(command.stdin), CHUNK):
            await channel.send(frame(INPUT, command.stdin[start : start + CHUNK]))
        await channel.send(frame(GO))

    async def _follow(self, channel: Channel) -> dict[str, Any]:
        tunnels = Tunnels(channel, self._command.egress)
        try:
            while True:
                kind, payload = await channel.receive()
                if kind == OUTPUT:
                    self._take_output(payload)
                    await channel.acknowledge(self._offset)
                elif kind == ENDED:
                    return parsed(payload)
                elif kind in TUNNEL_KINDS:
                    tunnels.receive(kind, payload)
                else:
                    raise NotUnderstood(f"{kind!r} while the command runs")
        finally:
            await tunnels.close()

    def _take_output(self, payload: bytes) -> None:
        try:
            at = int(payload[:20])
        except ValueError as error:
            raise NotUnderstood("output without its position") from error
        chunk = payload[20 + max(self._offset - at, 0) :]
        if at > self._offset:
            raise NotUnderstood("output is missing")
        if chunk:
            self._output(chunk)
            self._offset += len(chunk)

    def _outcome(self, ended: dict[str, Any]) -> Outcome:
        try:
            if ended.get("start_error") == errno.E2BIG:
                raise InvalidInput(COMMAND_TOO_LONG)
            if ended["ending"] == "killed":
                raise SandboxEvicted("the command was ended from outside; the step can be tried again")
            return Outcome(
                int(ended["exit_code"]),
                Ending(ended["ending"]),
                float(ended["seconds"]),
                shortened(str(ended["detail"]), 500),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise NotUnderstood("an end that cannot be") from error

    async def _collect(self, channel: Channel) -> tuple[str, ...]:
        """Bring the changed files into the folder; the answer is a line on each kind of thing that is not kept."""
        await channel.send(frame(COLLECT, WITH_ATTRIBUTES))
        incoming = self._pod.files.incoming(self._folder, self._command.limits)
        try:
            frames: list[tuple[bytes, bytes]] = []
            size = 0
            while True:
                kind, payload = await channel.receive()
                if kind != DONE:
                    frames.append((kind, payload))
                    size += len(payload) + HEADER.size
                if kind == DONE or size >= BATCH_BYTES:
                    await in_thread(incoming.take, frames)
                    frames, size = [], 0
                if kind == DONE:
                    await in_thread(incoming.finish)
                    return incoming.not_kept.lines()
        finally:
            incoming.close()

    async def _outcome_of_ended_pod(self) -> Outcome | None:
        """None while the pod lives, or the API server does not answer. Raises SandboxError when the command is not the
        cause of its end."""
        try:
            async with asyncio.timeout(POD_END_SECONDS):
                ended = await self._jobs.ended(self._pod.job)
        except (TimeoutError, Unavailable):
            return None
        if ended.reason is EndReason.TAKEN:
            raise Superseded(ended.message)
        if ended.reason is EndReason.EXITED:
            raise SandboxEvicted(f"{ended.message}; the step can be tried again")
        return ended.outcome(time.monotonic() - self._began)


def digest(command: Command) -> str:
    """Equal for the same command of the same step, whichever worker carries out the run."""
    parts = [command.call.run_id, command.call.step_id, list(command.argv), sorted(command.environment.items())]
    whole = json.dumps(parts).encode() + command.stdin
    return hashlib.sha256(whole).hexdigest()
