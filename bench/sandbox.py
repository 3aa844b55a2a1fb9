"""What a shell step that does nothing costs in each kind of sandbox: `true`, beside three small files.

All in the same run and in turns, each kind beside the least that it is made of: a Job beside a bare pod (what `kubectl
run` makes) that runs `true` in the same image, a container beside `podman run`, bubblewrap beside a bare start of the
same command line, all beside a bare process. The time is all of `Sandbox.run`: files there, command, files back, end.

Before each measurement on the cluster nothing else of this benchmark starts or ends there. A warm pod is claimed with
the pool's refill held back; "warm, beside its refill" is with the pod that takes its place starting at the same time.
Last, so many cold steps at once, with the requests to the API server counted, by the worker and by the server.

What cannot be had on this machine is left out, named in `skipped`, and has no goal. Kubernetes needs KUBECONFIG.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles

import structlog
import uvloop

from backplane.errors import PlatformError
from backplane.process.tasks import end
from backplane.settings import Settings
from bench._cluster import Namespace, counted, open_namespace
from bench._result import Goal, report
from worker.sandbox.base import Call, Command, Ending, Limits, Sandbox
from worker.sandbox.container.open import open_container_sandbox
from worker.sandbox.kubernetes.jobs import WorkerJobs, open_worker_jobs
from worker.sandbox.kubernetes.manifest import WORKSPACE, JobSettings
from worker.sandbox.kubernetes.pod.packed import runner_argv
from worker.sandbox.kubernetes.pool import PodSettings
from worker.sandbox.kubernetes.sandbox import KubernetesSandbox, Starts
from worker.sandbox.local.bubblewrap import Bubblewrap, find_bubblewrap
from worker.sandbox.local.sandbox import open_local_sandbox

ROUNDS = 10
CLAIMS_A_ROUND = 4
AT_ONCE = (10, 100)
AT_ONCE_WHERE_FEW_FIT = 60
MIB = 1024**2
LIMITS = Limits(
    wall_seconds=60,
    memory_bytes=128 * MIB,
    cpus=0.35,
    cpu_seconds=20,
    processes=16,
    file_bytes=MIB,
    disk_bytes=8 * MIB,
    files=100,
)
"""All pods that are there at the same time, the pools' and their refills, leave a node of four processors some room."""
SMALL = replace(LIMITS, memory_bytes=48 * MIB, cpus=0.02, wall_seconds=300)
"""So that a hundred fit on one small node: their requests are counted and not their time."""
TMP_BYTES = 16 * MIB
START_SECONDS = 300.0
IDLE_SECONDS = 900.0
NAMESPACE = "bench-sandbox"
WARM_P95_MS = 150.0
WARM_TO_COLD = 0.1
LOCAL_TO_BARE = 3.0
REQUESTS_GROWTH = 1.1
COLD, PER_RUN, WARM, REFILLED = "cold Job", "per_run, later commands", "warm", "warm, beside its refill"
CONTAINER, LOCAL = "container", "local"
BARE_POD, BARE_PODMAN, BARE_BWRAP, BARE_PROCESS = "bare pod", "bare podman run", "bare bwrap", "bare process"

Once = Callable[[], Awaitable[float]]
"""One measurement: seconds."""


@dataclass
class Contest:
    """`parts`: what is measured and how often a round."""

    image: str
    folder: Path
    parts: dict[str, tuple[int, Once]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    numbers: int = 0

    async def step(self, sandbox: Sandbox, run_id: str = "", limits: Limits = LIMITS) -> float:
        """A no-op step, of a run of its own unless one is named."""
        self.numbers += 1
        call = Call("bench", run_id or f"run-{os.getpid()}-{self.numbers}", f"step-{self.numbers}", 1, 1)
        output = bytearray()
        began = time.perf_counter()
        outcome = await sandbox.run(Command(("true",), limits, call), self.folder, output.extend, lambda line: None)
        took = time.perf_counter() - began
        if (outcome.exit_code, outcome.ending) != (0, Ending.EXITED):
            raise RuntimeError(f"a step ended otherwise: {outcome} {bytes(output)!r}")
        return took

    async def measure(self) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            left = {name: times for name, (times, _) in self.parts.items()}
            while any(left.values()):
                for name, (_, once) in self.parts.items():
                    if left[name]:
                        left[name] -= 1
                        seconds[name].append(await once())
        return seconds


# --- on this machine ---


async def process(command: Sequence[str], **options: object) -> float:
    """Seconds of a bare process, started and waited for; in a thread, for some take long."""

    def run() -> float:
        began = time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
        return time.perf_counter() - began

    return await asyncio.to_thread(run)


async def add_process(contest: Contest) -> None:
    true = shutil.which("true") or "true"
    contest.parts[BARE_PROCESS] = 10, lambda: process([true], cwd=contest.folder)


async def add_local(contest: Contest, stack: AsyncExitStack) -> None:
    try:
        sandbox = await open_local_sandbox(require_isolation=True)
    except PlatformError as error:
        contest.skipped.append(f"{LOCAL}: {error.message}")
        return
    stack.push_async_callback(sandbox.close)
    contest.parts[LOCAL] = 10, lambda: contest.step(sandbox)
    # The sandbox's own command line without its filter of system calls; nobody reads its status, and its start waits
    # for nobody.
    status, go = os.open(os.devnull, os.O_WRONLY), os.open("/dev/zero", os.O_RDONLY)
    stack.callback(os.close, status)
    stack.callback(os.close, go)
    variables = os.open(os.devnull, os.O_RDONLY)
    stack.callback(os.close, variables)
    command = Command(("true",), LIMITS, Call("", "", "", 1, 1))
    for binary in find_bubblewrap():
        for nested in (False, True):
            bubblewrap = Bubblewrap(binary, nested_user_namespaces=nested, system_calls=None)
            words = bubblewrap.arguments(command, contest.folder, status=status, go=go, variables=variables)

            def bare(words: Sequence[str] = words) -> Awaitable[float]:
                return process(words, pass_fds=(status, go, variables), env={}, stderr=subprocess.DEVNULL)

            try:
                await bare()
            except subprocess.CalledProcessError:
                continue
            contest.parts[BARE_BWRAP] = 10, bare
            return


async def add_container(contest: Contest, stack: AsyncExitStack) -> None:
    try:
        sandbox = await open_container_sandbox(
            engine="",
            image=contest.image,
            runtime="",
            tmp_bytes=TMP_BYTES,
            start_seconds=START_SECONDS,
            started=lambda *_: None,
            failed=lambda *_: None,
        )
    except PlatformError as error:
        contest.skipped.append(f"{CONTAINER}: {error.message}")
        return
    stack.push_async_callback(sandbox.close)
    contest.parts[CONTAINER] = 2, lambda: contest.step(sandbox)
    if podman := shutil.which("podman"):
        # Its defaults for these two may be more than a container can set for itself here.
        own = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        bare = [podman, "run", "--rm", "--pull", "never", "--network", "none", *own, contest.image, "true"]
        contest.parts[BARE_PODMAN] = 2, lambda: process(bare, cwd="/")
    else:
        contest.skipped.append(f"{BARE_PODMAN}: there is no podman")


# --- on the cluster ---


@dataclass
class Member:
    """A Kubernetes sandbox as a worker of its own has it, with a pool that is filled when it is asked for."""

    sandbox: KubernetesSandbox
    cluster: WorkerJobs
    claims: list[tuple[str, float]]
    ready: int = 0
    filled: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def keeping_pool(self) -> AsyncIterator[None]:
        """The pool is full when this is entered, and is not filled again when it has been left."""
        self.filled.clear()
        keeping = asyncio.create_task(self.sandbox.pool.warm.keep_filled())
        full = asyncio.create_task(self.filled.wait())
        try:
            await asyncio.wait({keeping, full}, return_when=asyncio.FIRST_COMPLETED)
            if keeping.done():
                keeping.result()
            yield
        finally:
            await end(keeping, full)


@asynccontextmanager
async def open_member(name: str, image: str, limits: Limits, *, reuses: bool, pool: int) -> AsyncIterator[Member]:
    jobs = JobSettings(
        namespace=NAMESPACE,
        image=image,
        argv=runner_argv(WORKSPACE, IDLE_SECONDS, TMP_BYTES),
        worker_id=f"bench-{name}",
        ttl_seconds=5,
        tmp_bytes=TMP_BYTES,
    )
    claims: list[tuple[str, float]] = []

    def ready(count: int) -> None:
        member.ready = count
        if count == pool:
            member.filled.set()

    async with open_worker_jobs(NAMESPACE, jobs.worker_id) as cluster:
        sandbox = KubernetesSandbox(
            cluster,
            jobs,
            PodSettings(
                limits,
                start_seconds=START_SECONDS,
                idle_seconds=IDLE_SECONDS,
                longest_run_seconds=3600.0,
                reuses=reuses,
                pool_size=pool,
            ),
            Starts(lambda _, start, seconds: claims.append((start, seconds)), lambda *_: None, ready),
        )
        member = Member(sandbox, cluster, claims)
        try:
            yield member
        finally:
            await sandbox.close()


class OnCluster:
    """The contestants on Kubernetes, each with a worker of its own; `requests`: of each step, by what it is."""

    def __init__(self, contest: Contest, namespace: Namespace, members: dict[str, Member]) -> None:
        self._contest = contest
        self._namespace = namespace
        self._members = members
        self.requests: dict[str, list[int]] = defaultdict(list)
        self.claims: dict[str, list[float]] = defaultdict(list)

    def add(self) -> None:
        parts = self._contest.parts
        parts[BARE_POD] = 1, self._bare
        parts[COLD] = 1, lambda: self._step(COLD, "cold")
        parts[PER_RUN] = CLAIMS_A_ROUND, lambda: self._step(PER_RUN, "reused", "the-run")
        parts[WARM] = CLAIMS_A_ROUND, self._warm
        parts[REFILLED] = 1, self._refilled

    async def begin(self) -> None:
        await self._contest.step(self._members[PER_RUN].sandbox, "the-run")
        self._members[PER_RUN].claims.clear()

    async def _settled(self) -> None:
        await self._namespace.settled(1 + sum(member.ready for member in self._members.values()))

    async def _bare(self) -> float:
        await self._settled()
        self._contest.numbers += 1
        return await self._namespace.run_pod(f"bare-{self._contest.numbers}", self._contest.image, "true")

    async def _warm(self) -> float:
        member = self._members[WARM]
        if not member.ready:
            async with member.keeping_pool():
                pass
        return await self._step(WARM, "warm")

    async def _refilled(self) -> float:
        member = self._members[REFILLED]
        async with member.keeping_pool():
            member.filled.clear()
            took = await self._step(REFILLED, "warm")
            await member.filled.wait()
        return took

    async def _step(self, name: str, start: str, run_id: str = "") -> float:
        await self._settled()
        member = self._members[name]
        before = member.cluster.requests
        took = await self._contest.step(member.sandbox, run_id)
        # A refill's are among them.
        self.requests[name].append(member.cluster.requests - before)
        began_as, seconds = member.claims.pop()
        if began_as != start:
            raise RuntimeError(f"{name}: a step began {began_as}")
        self.claims[name].append(seconds)
        return took


async def at_once(contest: Contest, namespace: Namespace, count: int) -> tuple[float, dict[str, object]]:
    """So many cold steps at once: requests a step, as the worker counts them, and all that is known of them."""
    await namespace.settled(0)
    async with open_member(f"{count}-at-once", contest.image, SMALL, reuses=False, pool=0) as member:
        on_server, own, began = await counted(), member.cluster.requests, time.perf_counter()
        await asyncio.gather(*(contest.step(member.sandbox, limits=SMALL) for _ in range(count)))
        took, own = time.perf_counter() - began, member.cluster.requests - own
        on_server = await counted() - on_server
    # The server does not show who asked. These come from nobody but those who run sandboxes; others' are among them.
    ours = {what: on_server[what] for what in ("POST jobs", "GET pods/exec", "PATCH jobs", "DELETE jobs")}
    return own / count, {
        "worker's requests a step": round(own / count, 2),
        "server's count a step": {what: round(number / count, 2) for what, number in ours.items()},
        "server's count a step, whoever sent them": round(on_server.total() / count, 1),
        "seconds, all": round(took, 1),
    }


async def requests_at_once(contest: Contest, namespace: Namespace, values: dict[str, object]) -> list[Goal]:
    few, many = AT_ONCE
    await namespace.settled(0)
    fitting = await namespace.fitting(SMALL.cpus, SMALL.memory_bytes)
    if fitting < many:
        contest.skipped.append(f"{many} steps at once: only {fitting} more pods fit on the nodes")
        many = AT_ONCE_WHERE_FEW_FIT
    if fitting < many:
        return []
    found: dict[int, float] = {}
    for count in (few, many):
        found[count], values[f"{count} cold steps at once"] = await at_once(contest, namespace, count)
    growth = round(found[many] / found[few], 2)
    return [Goal(f"API requests a step, {many} at once to {few} at once", growth, REQUESTS_GROWTH)]


# --- all of it ---


def spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": round(median(seconds) * 1000, 2), "p95_ms": round(p95(seconds) * 1000, 2), "count": len(seconds)}


def p95(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=20, method="inclusive")[18]


def goals(seconds: dict[str, list[float]]) -> list[Goal]:
    found = []
    if WARM in seconds:
        worst, cold = p95(seconds[WARM]), median(seconds[COLD])
        found.append(Goal("warm step, p95 ms", round(worst * 1000, 1), WARM_P95_MS))
        found.append(Goal("warm step, p95 to a cold Job's median", round(worst / cold, 3), WARM_TO_COLD))
    if BARE_BWRAP in seconds:
        ratio = median(seconds[LOCAL]) / median(seconds[BARE_BWRAP])
        found.append(Goal("local step to a bare bubblewrap start, medians", round(ratio, 2), LOCAL_TO_BARE))
    return found


async def measure(contest: Contest) -> tuple[dict[str, object], list[Goal]]:
    values: dict[str, object] = {"rounds": ROUNDS}
    async with AsyncExitStack() as stack:
        await add_process(contest)
        await add_local(contest, stack)
        await add_container(contest, stack)
        if not os.environ.get("KUBECONFIG"):
            contest.skipped.append("Kubernetes: KUBECONFIG is not set")
            seconds = await contest.measure()
            found: list[Goal] = []
        else:
            namespace = await stack.enter_async_context(open_namespace(NAMESPACE))
            async with AsyncExitStack() as workers:
                members = {}
                kinds = ((COLD, False, 0), (PER_RUN, True, 0), (WARM, False, CLAIMS_A_ROUND), (REFILLED, False, 1))
                for number, (name, reuses, pool) in enumerate(kinds):
                    member = open_member(f"{number}", contest.image, LIMITS, reuses=reuses, pool=pool)
                    members[name] = await workers.enter_async_context(member)
                cluster = OnCluster(contest, namespace, members)
                cluster.add()
                await cluster.begin()
                seconds = await contest.measure()
            values["until the pod was had"] = {name: spread(claims) for name, claims in cluster.claims.items()}
            values["API requests a step"] = {
                name: round(sum(each) / len(each), 2) for name, each in cluster.requests.items()
            }
            found = await requests_at_once(contest, namespace, values)
    values |= {name: spread(each) for name, each in seconds.items()}
    return {**values, "skipped": contest.skipped}, goals(seconds) + found


def main() -> None:
    # What the sandboxes log is no part of the line that is printed.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory(prefix="agent-bench-") as name:
        folder = Path(name) / "files"
        (folder / "data").mkdir(parents=True)
        for file in ("README.md", "main.py", "data/input.csv"):
            (folder / file).write_bytes(os.urandom(1024))
        image = Settings.model_fields["sandbox_image"].default
        values, found = uvloop.run(measure(Contest(image, folder)))
    report("sandbox", values, found)


if __name__ == "__main__":
    main()
