"""Workers as the cluster sees them: each with sandboxes of its own, some behind a network that can be cut."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.proxies import TcpProxy
from worker.sandbox.base import Call, Command, Limits, Outcome
from worker.sandbox.kubernetes.manifest import WORKSPACE, JobSettings
from worker.sandbox.kubernetes.pod.packed import runner_argv
from worker.sandbox.kubernetes.pool import PodSettings
from worker.sandbox.kubernetes.sandbox import KubernetesSandbox, Starts, open_kubernetes_sandbox

MIB = 1024 * 1024
IMAGE = os.environ.get("KUBERNETES_TEST_IMAGE", "docker.io/library/python:3.12-slim")
LIMITS = Limits(
    wall_seconds=60,
    memory_bytes=128 * MIB,
    cpus=0.25,
    cpu_seconds=20,
    processes=32,
    file_bytes=64 * MIB,
    disk_bytes=64 * MIB,
    files=1000,
)


def new_call(**changed: Any) -> Call:
    return replace(Call("user", str(uuid.uuid4()), "step", generation=1, tries=1), **changed)


@dataclass
class Worker:
    sandbox: KubernetesSandbox
    folder: Path
    said: bytearray = field(default_factory=bytearray)
    notices: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)

    async def run(self, call: Call, *argv: str, **changed: Any) -> Outcome:
        """The command's outcome; what it says goes to `said`, after what others said."""
        stdin = changed.pop("stdin", b"")
        command = Command(argv, replace(LIMITS, **changed), call, stdin)
        return await self.sandbox.run(command, self.folder, self.said.extend, self.notices.append)

    def begin(self, call: Call, *argv: str, **changed: Any) -> "asyncio.Task[Outcome]":
        return asyncio.create_task(self.run(call, *argv, **changed))

    @property
    def text(self) -> str:
        return self.said.decode("utf-8", "replace")


@asynccontextmanager
async def a_worker(
    namespace: str, folder: Path, *, kubeconfig: str = "", image: str = IMAGE, reuses: bool = False, pool_size: int = 0
) -> AsyncIterator[Worker]:
    folder.mkdir(exist_ok=True)
    worker_id = f"worker-{uuid.uuid4().hex[:8]}"
    starts: list[str] = []
    ready: list[int] = []
    jobs = JobSettings(
        namespace=namespace,
        image=image,
        argv=runner_argv(WORKSPACE, 60, 16 * MIB),
        worker_id=worker_id,
        ttl_seconds=60,
        tmp_bytes=16 * MIB,
    )
    counted = Starts(lambda kind, start, seconds: starts.append(start), lambda kind, reason: None, ready.append)
    async with open_kubernetes_sandbox(
        jobs,
        PodSettings(
            LIMITS, start_seconds=60, idle_seconds=60, longest_run_seconds=300, reuses=reuses, pool_size=pool_size
        ),
        counted,
        kubeconfig=kubeconfig,
    ) as sandbox:
        yield Worker(sandbox, folder, starts=starts, ready=ready)


@asynccontextmanager
async def a_bad_network(kubeconfig: str, folder: Path) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A proxy before the API server, and a kubeconfig that leads through it."""
    config = yaml.safe_load(Path(kubeconfig).read_text())
    cluster = config["clusters"][0]["cluster"]
    host, port = cluster["server"].removeprefix("https://").rsplit(":", 1)
    assert host in ("127.0.0.1", "localhost"), "the proxy leads to this machine only"
    async with TcpProxy(int(port)).running() as proxy:
        cluster["server"] = f"https://127.0.0.1:{proxy.port}"
        changed = folder / "kubeconfig"
        changed.write_text(yaml.safe_dump(config))
        changed.chmod(0o600)
        yield proxy, str(changed)
