"""Sandboxes' Jobs that workers have left behind, on a real cluster: gone after a period and a lease, and no other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from backplane.domain.runs import RunStatus
from backplane.domain.sandbox_labels import GENERATION
from backplane.process.tasks import end
from controller.cleanup.sandbox_jobs import JobPlace, SandboxJobCollector, Times, list_jobs
from controller.cleanup.sessions import sweep
from tests.kubernetes.controller.conftest import Cluster, Platform
from tests.waiting import wait_until

AT_ONCE = Times(lease=0, finished=3600, session=3600)
SOME_SECONDS = 90.0


def collector(
    kubernetes: Cluster, platform: Platform, times: Times = AT_ONCE, count: Callable[[int], None] = lambda _: None
) -> SandboxJobCollector:
    return SandboxJobCollector(
        platform.store.runs, platform.queue, kubernetes.namespace, times, period_seconds=0.1, collected=count
    )


@asynccontextmanager
async def collecting(kubernetes: Cluster, platform: Platform, times: Times = AT_ONCE) -> AsyncIterator[list[int]]:
    """What was counted, while a collector runs."""
    counted: list[int] = []
    task = asyncio.create_task(collector(kubernetes, platform, times, counted.append).run())
    yield counted
    await end(task)


async def passes(kubernetes: Cluster, platform: Platform, times: Times = AT_ONCE, count: int = 2) -> None:
    made = collector(kubernetes, platform, times)
    for _ in range(count):
        await made.collect(kubernetes.api)


async def settled(kubernetes: Cluster, count: int) -> None:
    """Until the cluster itself changes these Jobs no more: one that changes while it is deleted is left for later."""

    async def run() -> bool:
        return await kubernetes.running_jobs() == count

    await wait_until(run, SOME_SECONDS)


async def test_the_job_of_a_run_that_is_over_goes_with_its_pod(kubernetes: Cluster, platform: Platform) -> None:
    run = await platform.running_run()
    await kubernetes.job_of(run, generation=1)
    await settled(kubernetes, 1)
    await platform.store.running_runs.write(
        run.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None)
    )
    async with collecting(kubernetes, platform) as counted:

        async def nothing_is_left() -> bool:
            return not await kubernetes.pods() and not await kubernetes.jobs()

        await wait_until(nothing_is_left, SOME_SECONDS)
    assert sum(counted) == 1


async def test_only_jobs_of_running_runs_in_their_newest_generation_stay(
    kubernetes: Cluster, platform: Platform
) -> None:
    taken_over, held = await platform.running_run(generation=2), await platform.running_run()
    unknown = await platform.running_run()
    await kubernetes.job_of(taken_over, generation=1)
    current, other = await kubernetes.job_of(taken_over, generation=2), await kubernetes.job_of(held, generation=1)
    await kubernetes.make_job("of-nobody")
    await kubernetes.job_of(unknown, generation=1)
    await platform.store.running_runs.write(
        unknown.id, 1, lambda transaction: transaction.queue_again(attempt=None, error=None)
    )
    await settled(kubernetes, 5)
    await passes(kubernetes, platform)
    assert await kubernetes.jobs() == {current, other}


async def test_a_job_that_is_adopted_within_a_lease_stays(kubernetes: Cluster, platform: Platform) -> None:
    run = await platform.running_run(generation=2)
    job = await kubernetes.job_of(run, generation=1)
    await settled(kubernetes, 1)
    made = collector(kubernetes, platform)
    await made.collect(kubernetes.api)
    await kubernetes.relabel(job, **{GENERATION: "2"})
    await made.collect(kubernetes.api)
    await made.collect(kubernetes.api)
    assert await kubernetes.jobs() == {job}


async def test_a_job_that_nobody_needs_stays_for_a_lease(kubernetes: Cluster, platform: Platform) -> None:
    job = await kubernetes.make_job("of-nobody")
    await settled(kubernetes, 1)
    await passes(kubernetes, platform, Times(lease=3600, finished=3600, session=3600), count=3)
    assert await kubernetes.jobs() == {job}


async def test_the_warm_job_of_a_worker_that_is_gone_goes(kubernetes: Cluster, platform: Platform) -> None:
    await platform.queue.renew("worker-1", 10, [])
    kept = await kubernetes.warm_job("worker-1")
    await kubernetes.warm_job("worker-2")
    await settled(kubernetes, 2)
    await passes(kubernetes, platform)
    assert await kubernetes.jobs() == {kept}


async def test_two_controllers_may_collect_at_once(kubernetes: Cluster, platform: Platform) -> None:
    for number in range(5):
        await kubernetes.make_job(f"of-nobody-{number}")
    await settled(kubernetes, 5)
    counts: list[int] = []
    both = [collector(kubernetes, platform, count=counts.append) for _ in range(2)]
    for _ in range(2):
        await asyncio.gather(*(one.collect(kubernetes.api) for one in both))
    assert await kubernetes.jobs() == set()


async def test_all_pages_of_a_long_list_are_read(kubernetes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.cleanup.sandbox_jobs.PAGE", 2)
    names = {await kubernetes.make_job(f"of-nobody-{number}") for number in range(5)}
    assert {job.name for job in await list_jobs(kubernetes.api, kubernetes.namespace)} == names


async def test_collecting_goes_on_when_the_api_server_is_back(
    kubernetes: Cluster, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await kubernetes.make_job("of-nobody")
    await settled(kubernetes, 1)
    with monkeypatch.context() as without:
        without.setenv("KUBECONFIG", "/nowhere")
        async with collecting(kubernetes, platform):
            without.undo()

            async def nothing_is_left() -> bool:
                return not await kubernetes.jobs()

            await wait_until(nothing_is_left, SOME_SECONDS)


async def test_a_sweep_removes_old_jobs_that_no_running_run_needs(kubernetes: Cluster, platform: Platform) -> None:
    run = await platform.running_run()
    kept = await kubernetes.job_of(run, generation=1)
    await kubernetes.warm_job("worker-1")
    await settled(kubernetes, 2)
    began = datetime.now(UTC)

    async def are_old() -> bool:
        return datetime.now(UTC) - began > timedelta(seconds=1)

    await wait_until(are_old)
    removed = await sweep([JobPlace(kubernetes.namespace)], platform.store.runs, session_seconds=1, lease_seconds=0)
    assert removed == {"job": 1}
    assert await kubernetes.jobs() == {kept}
