"""Which pod a command gets, and what becomes of pods that do not answer: decided without a cluster."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from backplane.domain import sandbox_labels
from tests.sandbox_calls import CALL, LIMITS
from worker.sandbox.base import Command, Limits, NoticeSink, SandboxError
from worker.sandbox.kubernetes.channel import Channel
from worker.sandbox.kubernetes.jobs import FoundJob, WorkerJobs
from worker.sandbox.kubernetes.manifest import JobSettings
from worker.sandbox.kubernetes.pods import Pod, Pods
from worker.sandbox.kubernetes.pool import PodPool, PodSettings
from worker.sandbox.kubernetes.warm_pool import WarmPool

COMMAND = Command(("true",), LIMITS, CALL)
JOB_SETTINGS = JobSettings("tools", "image:1", ("python3",), "worker-1", ttl_seconds=60, tmp_bytes=1000)
SETTINGS = PodSettings(LIMITS, start_seconds=1, idle_seconds=10, longest_run_seconds=100, reuses=True, pool_size=1)


class Jobs(WorkerJobs):
    """Remembers what labels were set."""

    def __init__(self) -> None:
        self.labels: dict[str, Mapping[str, str | None]] = {}
        self.searches = 0

    async def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        self.labels[name] = labels

    async def find(self, labels: Mapping[str, str]) -> list[FoundJob]:
        self.searches += 1
        return []


class Cluster(Pods):
    """`broken` are the Jobs whose pods do not answer."""

    def __init__(self) -> None:
        self.own_jobs = Jobs()
        super().__init__(self.own_jobs, JOB_SETTINGS, start_seconds=1)
        self.broken: set[str] = set()
        self.removed: list[str] = []
        self.dismissed: list[str] = []
        self.started: list[str] = []

    async def start(
        self, name: str, labels: Mapping[str, str], limits: Limits, deadline_seconds: float, notice: NoticeSink | None
    ) -> str:
        self.started.append(name)
        return f"{name}-pod"

    async def check(self, pod: Pod) -> None:
        if pod.job in self.broken:
            raise SandboxError("it is gone")

    async def remove(self, pod: Pod, run_id: str) -> None:
        self.removed.append(pod.job)

    def dismiss_later(self, pod: Pod) -> None:
        self.dismissed.append(pod.job)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def pool_of(cluster: Cluster, settings: PodSettings = SETTINGS) -> PodPool:
    warm = WarmPool(cluster, 1, LIMITS, idle_seconds=10, run_seconds=100, ready=lambda count: None)
    return PodPool(cluster, warm, settings)


def pod(name: str, generation: int = 1) -> Pod:
    return Pod(name, f"{name}-pod", generation)


async def take(pool: PodPool, command: Command = COMMAND) -> tuple[str, str]:
    start, found = await pool.take(command, Path("/files"), lambda line: None)
    return start, found.job


async def test_a_call_that_was_cut_off_goes_on_in_its_pod(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    pool.keep(pod("kept"), "run")
    pool.cut_off(pod("cut-off"), CALL)
    assert await take(pool) == ("adopted", "cut-off")
    assert await take(pool) == ("reused", "kept")


async def test_the_pod_of_the_run_that_was_used_last_comes_first(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    for name in ("older", "newer"):
        pool.keep(pod(name), "run")
    pool.keep(pod("of-another"), "another run")
    assert await take(pool) == ("reused", "newer")
    assert await take(pool) == ("reused", "older")
    assert (await take(pool))[0] == "cold"


async def test_a_kept_pod_that_does_not_answer_is_removed_and_the_next_one_taken(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    for name in ("well", "broken"):
        pool.keep(pod(name), "run")
    cluster.broken = {"broken"}
    assert await take(pool) == ("reused", "well")
    assert cluster.removed == ["broken"]


async def test_a_command_with_limits_of_its_own_gets_a_new_pod(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    pool.keep(pod("kept"), "run")
    start, name = await take(pool, replace(COMMAND, limits=replace(LIMITS, memory_bytes=2000)))
    assert (start, name) == ("cold", cluster.started[0])
    assert pool.kept["run"]


async def test_each_new_pod_of_a_run_has_a_name_of_its_own(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    assert len({await take(pool) for _ in range(3)}) == 3


async def test_of_one_run_that_is_in_its_second_generation_what_is_left_is_searched_once(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    later = replace(COMMAND, call=replace(CALL, generation=2))
    await take(pool, later)
    await take(pool, replace(later, call=replace(later.call, step_id="other")))
    assert cluster.own_jobs.searches == 1


async def test_the_first_generation_of_a_run_searches_for_nothing(cluster: Cluster) -> None:
    await take(pool_of(cluster))
    assert cluster.own_jobs.searches == 0


@pytest.mark.parametrize(("lets_run_on", "removed"), [(False, ["cut-off"]), (True, [])])
async def test_a_run_that_is_released_leaves_nothing_running_unless_it_is_to_run_on(
    cluster: Cluster, lets_run_on: bool, removed: list[str]
) -> None:
    pool = pool_of(cluster)
    pool.keep(pod("kept"), "run")
    pool.cut_off(pod("cut-off"), CALL)
    pool.cut_off(pod("of-another"), replace(CALL, run_id="another"))
    await pool.release("run", lets_run_on=lets_run_on)
    assert (cluster.removed, cluster.dismissed) == (removed, ["kept"])
    assert (await take(pool, replace(COMMAND, call=replace(CALL, run_id="another"))))[1] == "of-another"


class OpenStream:
    is_closed = False

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes | None:
        return None


async def test_a_warm_pod_is_claimed_for_the_run_and_its_generation(cluster: Cluster) -> None:
    pool = pool_of(cluster)
    waiting = [pod("broken", 0), pod("unconnected", 0), pod("warm", 0)]
    for each in (waiting[0], waiting[2]):
        each.channel = Channel(OpenStream())
    pool.warm.waiting = list(waiting)
    cluster.broken = {"broken"}
    assert await take(pool) == ("warm", "warm")
    labels = cluster.own_jobs.labels["warm"]
    assert labels[sandbox_labels.RUN] == "run"
    assert labels[sandbox_labels.POOL] is None
    assert waiting[2].generation == 1
    assert (cluster.removed, cluster.dismissed) == (["broken"], ["unconnected"])
