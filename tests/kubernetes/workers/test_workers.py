"""A worker is lost, drains, or is stopped, while a command of it runs in a Job."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from backplane.domain import sandbox_labels
from backplane.domain.runs import RunStatus
from tests.platform.workers import Platform, WorkerProcess, worker
from tests.submitted import shell
from tests.waiting import wait_until
from worker.sandbox.kubernetes.jobs import FoundJob, WorkerJobs, open_worker_jobs

StartProcess = Callable[..., Awaitable[WorkerProcess]]
RUNS_ON = "date +%s.%N >> began; echo begun; n=0; while [ $n -lt 80 ]; do n=$((n+1)); sleep 0.1; done; echo over"


@pytest.fixture
async def cluster(namespace: str, kubeconfig: str) -> AsyncIterator[WorkerJobs]:
    async with open_worker_jobs(namespace, "looks-on", kubeconfig) as cluster:
        yield cluster


async def jobs_of(cluster: WorkerJobs, run_id: str) -> list[FoundJob]:
    return await cluster.find({sandbox_labels.RUN: run_id})


async def test_a_command_whose_worker_is_killed_is_taken_over_and_not_begun_again(
    platform: Platform, start_process: StartProcess, cluster: WorkerJobs
) -> None:
    first = await start_process(platform)
    run_id = await platform.submit(shell("a", "echo a > a"), shell("b", RUNS_ON), shell("c", "cat a began"))
    await platform.until_begun(run_id)
    await first.kill()
    async with worker(platform.settings):
        run = await platform.completed(run_id)
    assert run.generation == 2
    assert len((await platform.read(run_id, "began")).splitlines()) == 1
    assert (await platform.lines(run_id)).count("over") == 1
    assert len(await jobs_of(cluster, run_id)) == 3
    await platform.ends_whole(run_id)


async def test_a_command_that_outlasts_the_grace_of_its_worker_goes_on_for_the_next_one(
    platform: Platform, start_process: StartProcess
) -> None:
    first = await start_process(platform, worker_grace_seconds=0.1)
    run_id = await platform.submit(shell("a", RUNS_ON))
    await platform.until_begun(run_id)
    first.signal(signal.SIGTERM)
    assert await first.ended() == 0
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert len((await platform.read(run_id, "began")).splitlines()) == 1
    await platform.ends_whole(run_id)


async def test_a_cancelled_run_ends_at_once_and_its_job_goes(platform: Platform, cluster: WorkerJobs) -> None:
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", "trap '' TERM; echo begun; sleep 1000"))
        await platform.until_begun(run_id)
        [job] = await jobs_of(cluster, run_id)
        await platform.submission.cancel(platform.user, run_id)
        await platform.until(run_id, RunStatus.CANCELLED)
    await wait_until(lambda: _is_gone(cluster, run_id), 30)
    assert await cluster.deleted(job.name, 30)


async def test_a_run_that_no_worker_took_over_is_repeated_where_its_job_has_gone_too(
    platform: Platform, start_process: StartProcess, cluster: WorkerJobs
) -> None:
    first = await start_process(platform)
    run_id = await platform.submit(shell("a", "date +%s.%N >> began; echo begun; sleep 3; echo over"))
    await platform.until_begun(run_id)
    await first.kill()
    [job] = await jobs_of(cluster, run_id)
    await cluster.delete(job.name)
    assert await cluster.deleted(job.name, 30)
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert len((await platform.read(run_id, "began")).splitlines()) == 1
    assert (await platform.lines(run_id)).count("begun") == 2


async def _is_gone(cluster: WorkerJobs, run_id: str) -> bool:
    return not await jobs_of(cluster, run_id)
