"""Jobs and pods on a real cluster: how they are made, watched, reported, spoken to and removed, also over a bad
network."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from backplane.domain import sandbox_labels
from backplane.errors import Unavailable
from backplane.kubernetes import exec_stream
from backplane.kubernetes.api import open_api_server
from tests.chaos.proxies import TcpProxy
from tests.waiting import wait_until
from worker.sandbox.base import (
    Call,
    Ending,
    Limits,
    SandboxError,
    SandboxImageNotFound,
    SandboxQuotaExceeded,
    SandboxRefused,
    SandboxUnschedulable,
)
from worker.sandbox.kubernetes import manifest as job
from worker.sandbox.kubernetes.jobs import WorkerJobs, open_worker_jobs
from worker.sandbox.kubernetes.manifest import JobSettings
from worker.sandbox.kubernetes.pod_state import EndReason

MIB = 1024 * 1024
START_SECONDS = 60.0
LIMITS = Limits(
    wall_seconds=60,
    memory_bytes=32 * MIB,
    cpus=0.05,
    cpu_seconds=60,
    processes=32,
    file_bytes=64 * MIB,
    disk_bytes=64 * MIB,
    files=100,
)
IDLE = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")


class Jobs:
    """Makes Jobs of one worker, each a little different from all others."""

    def __init__(self, cluster: WorkerJobs, settings: JobSettings) -> None:
        self.cluster = cluster
        self.settings = settings
        self.call = Call("ann", str(uuid.uuid4()), "1", generation=1, tries=1)
        self.made: list[str] = []

    def manifest(
        self,
        argv: tuple[str, ...] = IDLE,
        limits: Limits = LIMITS,
        deadline_seconds: float = 120,
        **settings: Any,
    ) -> dict[str, Any]:
        self.call = replace(self.call, tries=self.call.tries + 1)
        return job.manifest(
            job.step_name(self.call),
            job.step_labels(self.call, self.settings.worker_id),
            limits,
            replace(self.settings, argv=argv, **settings),
            deadline_seconds,
        )

    async def create(self, manifest: dict[str, Any]) -> str:
        name: str = manifest["metadata"]["name"]
        self.made.append(name)
        await self.cluster.create(manifest)
        return name

    async def start(self, *argv: str, **changed: Any) -> tuple[str, str]:
        """Name of a new Job, and of its pod, which runs."""
        name = await self.create(self.manifest(argv or IDLE, **changed))
        return name, await self.cluster.started(name, START_SECONDS, print)


@asynccontextmanager
async def jobs_of(namespace: str, image: str, kubeconfig: str) -> AsyncIterator[Jobs]:
    worker_id = f"worker-{uuid.uuid4().hex[:8]}"
    settings = JobSettings(namespace, image, IDLE, worker_id, ttl_seconds=60, tmp_bytes=4 * MIB)
    async with open_worker_jobs(namespace, worker_id, kubeconfig) as cluster:
        jobs = Jobs(cluster, settings)
        yield jobs
        await asyncio.gather(*(cluster.delete(name) for name in jobs.made))


@pytest.fixture
async def jobs(namespace: str, sandbox_image: str, kubeconfig: str) -> AsyncIterator[Jobs]:
    async with jobs_of(namespace, sandbox_image, kubeconfig) as made:
        yield made


@pytest.fixture
async def admin(kubeconfig: str, namespace: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Asks the API server for what the product does not: `await admin("GET", "pods/x")`, within the namespace."""
    async with open_api_server(kubeconfig) as api:

        async def ask(method: str, path: str, body: Any = None) -> Any:
            return await api.call(method, f"/api/v1/namespaces/{namespace}/{path}", body=body)

        yield ask


@pytest.fixture
async def proxied(
    namespace: str, sandbox_image: str, kubeconfig: str, tmp_path: Path
) -> AsyncIterator[tuple[Jobs, TcpProxy]]:
    """Jobs over a network that the test can break."""
    config = yaml.safe_load(await asyncio.to_thread(Path(kubeconfig).read_text))
    for entry in config["clusters"]:
        server = urlsplit(entry["cluster"]["server"])
        entry["cluster"].setdefault("tls-server-name", server.hostname)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(ProxyTo(server.hostname or "", server.port or 443).running())
        entry["cluster"]["server"] = f"https://127.0.0.1:{proxy.port}"
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        yield await stack.enter_async_context(jobs_of(namespace, sandbox_image, str(file))), proxy


class ProxyTo(TcpProxy):
    def __init__(self, host: str, port: int) -> None:
        super().__init__(port)
        self._address = (host, port)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self._address)


def ignore(_: str) -> None: ...


# --- from creation to the end ---


async def test_a_job_created_twice_is_one(jobs: Jobs) -> None:
    manifest = jobs.manifest()
    await jobs.create(manifest)
    assert not await jobs.cluster.create(manifest)
    assert len(await jobs.cluster.find(manifest["metadata"]["labels"])) == 1


async def test_a_pod_that_starts_and_ends_by_itself_is_noticed(jobs: Jobs) -> None:
    name, pod = await jobs.start("sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.1; done; echo last words; exit 7")
    async with jobs.cluster.exec(pod, ["touch", "/tmp/go"]):
        pass
    end = await jobs.cluster.ended(name)
    assert (end.reason, end.exit_code) == (EndReason.EXITED, 7)
    assert "last words" in end.message


async def test_what_never_was_has_ended(jobs: Jobs) -> None:
    assert (await jobs.cluster.ended("step-none")).reason is EndReason.DELETED


async def test_too_much_memory_is_distinguished_from_other_ends(jobs: Jobs) -> None:
    name = await jobs.create(jobs.manifest(("python3", "-c", "bytearray(200_000_000)")))
    outcome = (await jobs.cluster.ended(name)).outcome(1)
    assert outcome.ending is Ending.MEMORY
    assert outcome.exit_code == 137


async def test_a_job_past_its_deadline_is_a_timeout(jobs: Jobs) -> None:
    name, _ = await jobs.start(deadline_seconds=6)
    assert (await jobs.cluster.ended(name)).outcome(1).ending is Ending.TIMEOUT


@pytest.mark.slow
async def test_a_full_workspace_is_distinguished_from_other_evictions(jobs: Jobs) -> None:
    limits = replace(LIMITS, disk_bytes=MIB, files=1)
    name, _ = await jobs.start(
        "sh", "-c", "head -c 20000000 /dev/zero > /workspace/big; sleep 200", limits=limits, deadline_seconds=200
    )
    assert (await jobs.cluster.ended(name)).outcome(1).ending is Ending.DISK


async def test_a_pod_that_someone_deletes_can_be_tried_again(jobs: Jobs, admin: Callable[..., Awaitable[Any]]) -> None:
    name, pod = await jobs.start()
    await admin("DELETE", f"pods/{pod}")
    with pytest.raises(SandboxError) as raised:
        (await jobs.cluster.ended(name)).outcome(1)
    assert raised.value.retryable


async def test_a_hundred_waits_cost_the_api_server_nothing(jobs: Jobs) -> None:
    name, _ = await jobs.start()
    before = jobs.cluster.requests
    waits = [asyncio.create_task(jobs.cluster.ended(name)) for _ in range(100)]
    assert await jobs.cluster.started(name, START_SECONDS, ignore)
    assert jobs.cluster.requests == before
    await jobs.cluster.delete(name)
    assert {end.reason for end in await asyncio.gather(*waits)} == {EndReason.DELETED}


async def test_a_call_costs_three_requests(jobs: Jobs) -> None:
    before = jobs.cluster.requests
    name, pod = await jobs.start()
    async with jobs.cluster.exec(pod, ["true"]) as stream:
        assert await stream.receive() is None
    await jobs.cluster.delete(name)
    await jobs.cluster.ended(name)
    watches = 1  # the watch is renewed every half minute, however many calls there are
    assert jobs.cluster.requests - before <= 3 + watches


# --- what never starts ---


async def test_a_job_too_large_for_every_node_is_reported_in_the_schedulers_words(jobs: Jobs) -> None:
    name = await jobs.create(jobs.manifest(limits=replace(LIMITS, cpus=1000)))
    lines: list[str] = []
    with pytest.raises(SandboxUnschedulable, match=r"[Ii]nsufficient cpu"):
        await jobs.cluster.started(name, 3, lines.append)
    assert any("nsufficient cpu" in line for line in lines)
    assert len(lines) == len(set(lines))


async def test_an_image_that_cannot_be_had_is_reported_so(jobs: Jobs) -> None:
    # At this address there is no registry on any node.
    name = await jobs.create(jobs.manifest(image="127.0.0.1:1/none:1"))
    with pytest.raises(SandboxImageNotFound, match="SANDBOX_IMAGE"):
        await jobs.cluster.started(name, 5, ignore)


async def test_a_name_that_is_no_image_ends_the_wait_at_once(jobs: Jobs) -> None:
    name = await jobs.create(jobs.manifest(image="NOT AN IMAGE"))
    with pytest.raises(SandboxImageNotFound):
        await jobs.cluster.started(name, START_SECONDS, ignore)


async def test_an_image_without_the_program_ends_the_wait_at_once(jobs: Jobs) -> None:
    name = await jobs.create(jobs.manifest(("no-such-program",)))
    with pytest.raises(SandboxRefused, match="no-such-program"):
        await jobs.cluster.started(name, START_SECONDS, ignore)


async def test_a_job_that_the_server_does_not_understand_is_refused_in_its_words(jobs: Jobs) -> None:
    manifest = jobs.manifest()
    manifest["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(SandboxRefused, match="restartPolicy"):
        await jobs.create(manifest)


async def test_a_namespace_that_is_not_there_is_refused_by_name(jobs: Jobs, kubeconfig: str) -> None:
    async with open_worker_jobs("no-such-namespace", "w", kubeconfig) as cluster:
        manifest = jobs.manifest()
        del manifest["metadata"]["namespace"]
        with pytest.raises(SandboxRefused, match="no-such-namespace"):
            await cluster.create(manifest)


@pytest.fixture
async def full(kubeconfig: str, sandbox_image: str) -> AsyncIterator[Jobs]:
    """Jobs in a namespace whose quota has room for no pod."""
    name = f"test-full-{uuid.uuid4().hex[:8]}"
    quota = {"metadata": {"name": "no-room"}, "spec": {"hard": {"pods": "0"}}}
    async with open_api_server(kubeconfig) as api:
        await api.call("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        await api.call("POST", f"/api/v1/namespaces/{name}/resourcequotas", body=quota)

        async def is_in_force() -> bool:
            found = await api.call("GET", f"/api/v1/namespaces/{name}/resourcequotas/no-room")
            accounts = await api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts")
            return "hard" in found.get("status", {}) and bool(accounts["items"])

        await wait_until(is_in_force)
        async with jobs_of(name, sandbox_image, kubeconfig) as jobs:
            yield jobs
        await api.call("DELETE", f"/api/v1/namespaces/{name}")


async def test_a_used_up_quota_is_waited_for_and_then_told(full: Jobs) -> None:
    name = await full.create(full.manifest())
    lines: list[str] = []
    with pytest.raises(SandboxQuotaExceeded, match="no-room"):
        await full.cluster.started(name, 4, lines.append)
    assert any("exceeded quota" in line for line in lines)


# --- found, claimed, removed ---


async def test_a_job_of_another_worker_is_found_and_taken_over(
    jobs: Jobs, namespace: str, sandbox_image: str, kubeconfig: str
) -> None:
    name, pod = await jobs.start()
    async with jobs_of(namespace, sandbox_image, kubeconfig) as others:
        [found] = await others.cluster.find({sandbox_labels.RUN: jobs.call.run_id})
        assert (found.name, found.is_finished) == (name, False)
        await others.cluster.relabel(name, job.worker_labels(others.settings.worker_id))
        assert await others.cluster.started(name, START_SECONDS, ignore) == pod
        assert (await jobs.cluster.ended(name)).reason is EndReason.TAKEN
        await others.cluster.delete(name)
        assert (await others.cluster.ended(name)).reason is EndReason.DELETED


async def test_a_claim_changes_the_labels_of_job_and_pod(jobs: Jobs, admin: Callable[..., Awaitable[Any]]) -> None:
    manifest = jobs.manifest()
    for labels in (manifest["metadata"]["labels"], manifest["spec"]["template"]["metadata"]["labels"]):
        labels |= job.warm_labels(jobs.settings.worker_id)
    name = await jobs.create(manifest)
    pod = await jobs.cluster.started(name, START_SECONDS, ignore)
    await jobs.cluster.relabel(name, {sandbox_labels.USER: "bob", sandbox_labels.POOL: None})
    [found] = await jobs.cluster.find({sandbox_labels.USER: "bob"})
    for labels in (found.labels, (await admin("GET", f"pods/{pod}"))["metadata"]["labels"]):
        assert labels[sandbox_labels.USER] == "bob"
        assert sandbox_labels.POOL not in labels


async def test_a_claim_of_what_is_gone_says_so(jobs: Jobs) -> None:
    with pytest.raises(SandboxError, match="gone"):
        await jobs.cluster.relabel("step-none", {"a": "b"})


async def test_a_deleted_job_is_gone_with_its_pod(jobs: Jobs, admin: Callable[..., Awaitable[Any]]) -> None:
    name, _ = await jobs.start()
    await jobs.cluster.delete(name)
    assert not await jobs.cluster.find(job.step_labels(jobs.call, jobs.settings.worker_id))
    assert await jobs.cluster.deleted(name, START_SECONDS)
    assert not (await admin("GET", f"pods?labelSelector=job-name={name}"))["items"]
    await jobs.cluster.delete(name)


async def test_a_job_that_stays_is_not_said_to_be_gone(jobs: Jobs) -> None:
    name, _ = await jobs.start()
    assert not await jobs.cluster.deleted(name, 0.5)


# --- streams ---


async def test_bytes_of_any_kind_come_back_as_they_were(jobs: Jobs) -> None:
    _, pod = await jobs.start()
    sent = bytes(range(256)) * 1000
    async with jobs.cluster.exec(pod, ["sh", "-c", "cat"]) as stream:
        await stream.send(sent)
        assert await received(stream, len(sent)) == sent


async def received(stream: exec_stream.ExecStream, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        data = await stream.receive()
        assert data is not None
        got += data
    return bytes(got)


@pytest.mark.slow
async def test_50_megabytes_go_there_and_back(jobs: Jobs) -> None:
    _, pod = await jobs.start(limits=replace(LIMITS, cpus=0.5))
    block = os.urandom(MIB)
    async with jobs.cluster.exec(pod, ["cat"]) as stream:

        async def send() -> None:
            for _ in range(50):
                await stream.send(block)

        sending = asyncio.create_task(send())
        got = await received(stream, 50 * MIB)
        await sending
    assert got == block * 50


async def test_arguments_arrive_as_they_are(jobs: Jobs) -> None:
    _, pod = await jobs.start()
    odd = "a b&c=d+e%2B;'\"ü"
    async with jobs.cluster.exec(pod, ["printf", "%s", odd]) as stream:
        assert await received(stream, len(odd.encode())) == odd.encode()
        assert await stream.receive() is None


async def test_a_process_that_fails_is_reported_with_its_last_words(jobs: Jobs) -> None:
    _, pod = await jobs.start()
    async with jobs.cluster.exec(pod, ["sh", "-c", "echo it is broken >&2; exit 3"]) as stream:
        with pytest.raises(Unavailable, match=r"exit code 3.*it is broken"):
            await stream.receive()


async def test_a_stream_into_a_pod_that_dies_breaks(jobs: Jobs) -> None:
    name, pod = await jobs.start()
    async with jobs.cluster.exec(pod, ["cat"]) as stream:
        await jobs.cluster.delete(name)
        with pytest.raises(Unavailable):
            await stream.receive()


async def test_no_stream_leads_into_a_pod_that_is_not_there(jobs: Jobs) -> None:
    with pytest.raises(Unavailable, match="step-none"):
        async with jobs.cluster.exec("step-none", ["cat"]):
            pass


# --- a bad network ---


async def test_an_end_during_an_outage_is_not_missed(
    proxied: tuple[Jobs, TcpProxy], jobs: Jobs, admin: Callable[..., Awaitable[Any]]
) -> None:
    mine, proxy = proxied
    name, pod = await mine.start()
    ended = asyncio.create_task(mine.cluster.ended(name))
    proxy.refuses = True
    proxy.cut()
    with suppress(Unavailable):
        async with jobs.cluster.exec(pod, ["sh", "-c", "kill -TERM 1"]) as stream:
            await stream.receive()

    async def has_ended() -> bool:
        return bool((await admin("GET", f"pods/{pod}"))["status"]["phase"] == "Succeeded")

    await wait_until(has_ended, timeout=START_SECONDS)
    proxy.refuses = False
    assert (await ended).reason is EndReason.EXITED


async def test_a_job_deleted_during_an_outage_is_not_missed(proxied: tuple[Jobs, TcpProxy], jobs: Jobs) -> None:
    mine, proxy = proxied
    name, _ = await mine.start()
    ended = asyncio.create_task(mine.cluster.ended(name))
    proxy.refuses = True
    proxy.cut()
    await jobs.cluster.delete(name)
    assert await jobs.cluster.deleted(name, START_SECONDS)
    proxy.refuses = False
    assert (await ended).reason is EndReason.DELETED


async def test_a_server_that_cannot_be_reached_is_unavailable(proxied: tuple[Jobs, TcpProxy]) -> None:
    mine, proxy = proxied
    proxy.refuses = True
    proxy.cut()
    manifest = mine.manifest()
    with pytest.raises(Unavailable) as raised:
        await mine.cluster.create(manifest)
    assert raised.value.part == "sandbox"
    with pytest.raises(Unavailable):
        await mine.cluster.started(manifest["metadata"]["name"], 1, ignore)
    proxy.refuses = False
    await mine.create(manifest)


async def test_a_stream_that_is_cut_is_reported_at_once(proxied: tuple[Jobs, TcpProxy]) -> None:
    mine, proxy = proxied
    _, pod = await mine.start()
    async with mine.cluster.exec(pod, ["cat"]) as stream:
        receiving = asyncio.create_task(stream.receive())
        await stream.send(b"x")
        assert await receiving == b"x"
        proxy.cut()
        with pytest.raises(Unavailable):
            await stream.receive()


async def test_a_stream_that_went_silent_is_given_up(
    proxied: tuple[Jobs, TcpProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_stream, "PING_SECONDS", 0.2)
    mine, proxy = proxied
    _, pod = await mine.start()
    async with mine.cluster.exec(pod, ["cat"]) as stream:
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        proxy.silence(True)
        with pytest.raises(Unavailable, match="nothing came"):
            await stream.receive()
        proxy.silence(False)


async def test_a_stream_that_is_only_quiet_stays(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_stream, "PING_SECONDS", 0.1)
    _, pod = await jobs.start()
    async with jobs.cluster.exec(pod, ["sh", "-c", "sleep 2; echo done"]) as stream:
        assert await stream.receive() == b"done\n"


async def test_without_credentials_it_is_said_where_they_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="KUBECONFIG"):
        async with open_worker_jobs("tools", "w", str(tmp_path / "none")):
            pass
