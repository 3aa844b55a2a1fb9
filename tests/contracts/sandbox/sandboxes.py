"""The kinds of sandbox that the contract holds for, and what its tests share.

`bubblewrap` is the local sandbox as it should be, `unisolated` what it falls back to. `container` runs on whichever
engine works here, or on the one that SANDBOX_CONTAINER_ENGINE names; `kubernetes` in the cluster of KUBECONFIG, in a
namespace of the tests' own.
"""

import asyncio
import atexit
import functools
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import PlatformError, Unavailable
from tests.waiting import wait_until
from worker.sandbox.base import Call, Command, Egress, Isolation, Limits, Outcome, Sandbox
from worker.sandbox.container.open import open_container_sandbox
from worker.sandbox.container.sandbox import ContainerSandbox
from worker.sandbox.kubernetes.manifest import WORKSPACE, JobSettings
from worker.sandbox.kubernetes.pod.packed import runner_argv
from worker.sandbox.kubernetes.pool import PodSettings
from worker.sandbox.kubernetes.sandbox import Starts, open_kubernetes_sandbox
from worker.sandbox.local.cgroup import ControlGroups
from worker.sandbox.local.sandbox import LocalSandbox, open_local_sandbox

MIB = 1024 * 1024
LIMITS = Limits(
    wall_seconds=60,
    memory_bytes=256 * MIB,
    cpus=0.5,
    cpu_seconds=20,
    processes=32,
    file_bytes=64 * MIB,
    disk_bytes=32 * MIB,
    files=1000,
)

EVERY = ("bubblewrap", "unisolated", "container", "kubernetes")
ISOLATED = ("bubblewrap", "container", "kubernetes")
NEARBY = ("bubblewrap", "unisolated", "container")
"""Those whose processes run on this machine, in the very folder that they were given."""
LOCAL = ("bubblewrap", "unisolated")
# A container costs a second where bubblewrap costs some milliseconds; what is its own is in test_container.py.
MARKS: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "kubernetes": (pytest.mark.kubernetes,),
    "container": (pytest.mark.slow,),
}


def kinds(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=MARKS.get(name, ())) for name in names]


async def open_bubblewrap() -> Sandbox:
    try:
        return await open_local_sandbox(require_isolation=True)
    except Unavailable as error:
        return cannot_be_had(error, required=bool(os.environ.get("CI")))


async def open_unisolated() -> Sandbox:
    return LocalSandbox(None, ControlGroups.find(), Isolation("none", isolated=False))


async def open_container(**changed: Any) -> ContainerSandbox:
    values: dict[str, Any] = {
        "engine": os.environ.get("SANDBOX_CONTAINER_ENGINE", ""),
        "image": os.environ.get("SANDBOX_IMAGE", "docker.io/library/python:3.12-slim"),
        "runtime": os.environ.get("SANDBOX_CONTAINER_RUNTIME", ""),
        "tmp_bytes": 256 * MIB,
        "start_seconds": 60,
        "started": lambda kind, start, seconds: None,
        "failed": lambda kind, reason: None,
    }
    return await open_container_sandbox(**{**values, **changed})


@functools.cache
def found_container() -> ContainerSandbox | PlatformError:
    """Found out once a test process, in a loop of its own: a container sandbox holds nothing of a loop."""
    try:
        found = asyncio.run(open_container())
    except PlatformError as error:
        return error
    atexit.register(lambda: asyncio.run(found.close()))
    return found


async def open_found_container() -> Sandbox:
    found = await asyncio.to_thread(found_container)
    if isinstance(found, PlatformError):
        return cannot_be_had(found, required=bool(os.environ.get("CONTAINERS_REQUIRED")))
    return found


@dataclass(frozen=True)
class Place:
    """Where a sandbox of this kind is to be; what only a cluster needs is empty for the others."""

    kind: str
    namespace: str = ""
    image: str = ""
    kubeconfig: str = ""


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Sandbox]:
    if place.kind != "kubernetes":
        yield await OPENERS[place.kind]()
        return
    jobs = JobSettings(
        namespace=place.namespace,
        image=place.image,
        argv=runner_argv(WORKSPACE, 60, 16 * MIB),
        worker_id=uuid.uuid4().hex,
        ttl_seconds=1,
        tmp_bytes=16 * MIB,
    )
    uncounted = Starts(lambda kind, start, seconds: None, lambda kind, reason: None, lambda count: None)
    async with open_kubernetes_sandbox(
        jobs,
        PodSettings(LIMITS, start_seconds=120, idle_seconds=60, longest_run_seconds=600, reuses=False, pool_size=0),
        uncounted,
        kubeconfig=place.kubeconfig,
    ) as sandbox:
        yield sandbox


def cannot_be_had(error: PlatformError, *, required: bool) -> Sandbox:
    if required:
        pytest.fail(error.message, pytrace=False)
    pytest.skip(error.message)


OPENERS: dict[str, Callable[[], Awaitable[Sandbox]]] = {
    "bubblewrap": open_bubblewrap,
    "unisolated": open_unisolated,
    "container": open_found_container,
}


def new_call() -> Call:
    return Call("user", uuid.uuid4().hex, "1", 1, 1)


def new_command(
    *argv: str,
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
    egress: Egress | None = None,
    **limits: Any,
) -> Command:
    return Command(argv, replace(LIMITS, **limits), new_call(), stdin, environment or {}, egress)


def ignore(_: bytes | str) -> None:
    pass


class Running:
    """A command under way, and what it has said so far."""

    def __init__(self, sandbox: Sandbox, folder: Path, *argv: str, **changed: Any) -> None:
        self.said = bytearray()
        self.notices: list[str] = []
        command = new_command(*argv, **changed)
        self.task = asyncio.create_task(sandbox.run(command, folder, self.said.extend, self.notices.append))

    async def says(self, text: bytes) -> None:
        """Wait until it has said just that."""
        await wait_until(lambda: self.said == text or self.task.done(), what=f"the command says {text!r}")
        if self.task.done():
            await self.task
        assert self.said == text

    async def ends(self) -> tuple[Outcome, str]:
        outcome = await self.task
        return outcome, self.said.decode("utf-8", "replace")

    async def cancel(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


def needs_group(sandbox: Sandbox, controller: str) -> None:
    if isinstance(sandbox, LocalSandbox) and controller not in ControlGroups.find().controllers:
        pytest.skip(f"no control group with the controller {controller} can be made here")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def processes_with(mark: str) -> list[str]:
    """Command lines of this machine's processes in which `mark` stands."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if mark in line and int(folder.name) != os.getpid():
            found.append(line)
    return found


def new_mark() -> str:
    """A duration that `sleep` understands and no other process in the world has in its arguments."""
    return f"1000.{uuid.uuid4().int}"
