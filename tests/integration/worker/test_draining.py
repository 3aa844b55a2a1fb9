"""A worker drains: running steps end, other runs are handed back, and nothing is lost or left behind."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backplane.domain.runs import RunStatus
from backplane.domain.steps import StepStatus
from backplane.queue.base import Claim
from backplane.queue.redis import RedisQueue
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import UNTIL_GO, Platform, WorkerProcess, processes_with, worker
from tests.submitted import shell, write
from tests.waiting import wait_until

StartProcess = Callable[..., Awaitable[WorkerProcess]]


@pytest.mark.slow
async def test_the_running_step_ends_and_the_rest_of_the_run_is_handed_back(
    platform: Platform, start_process: StartProcess
) -> None:
    process = await start_process(platform, worker_grace_seconds=30.0)
    run_id = await platform.submit(shell("a", f"{UNTIL_GO}; echo a >> marks"), shell("b", "echo b >> marks"))
    await platform.until_begun(run_id)
    process.signal(signal.SIGTERM)
    await process.until_logged("draining")
    await platform.let_go(run_id)
    assert await process.ended() == 0

    run = await platform.run(run_id)
    assert (run.status, run.attempt) == (RunStatus.QUEUED, 1)
    assert [step.status for step in await platform.journal(run_id)] == [StepStatus.COMPLETED, StepStatus.PENDING]
    assert (await platform.statuses(run_id))[-1] == ("queued", 1)
    assert list(platform.scratch.iterdir()) == []

    async with worker(platform.settings):
        run = await platform.completed(run_id)
    assert (run.generation, run.attempt) == (2, 1)
    assert (await platform.read(run_id, "marks")).split() == [b"a", b"b"]
    await platform.ends_whole(run_id)


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
async def test_a_step_that_takes_longer_than_the_grace_is_interrupted_and_handed_back(
    platform: Platform, start_process: StartProcess
) -> None:
    marker = "600.0521"
    process = await start_process(platform, worker_grace_seconds=0.1)
    run_id = await platform.submit(shell("a", f"trap '' TERM; echo a >> marks; sleep {marker} & {UNTIL_GO}"))
    await platform.until_begun(run_id)
    process.signal(signal.SIGTERM)
    assert await process.ended() == 0

    assert processes_with(marker) == []
    assert list(platform.scratch.iterdir()) == []
    run = await platform.run(run_id)
    assert (run.status, run.attempt) == (RunStatus.QUEUED, 1)
    await platform.let_go(run_id)
    async with worker(platform.settings):
        await platform.completed(run_id)
    assert (await platform.read(run_id, "marks")).split() == [b"a"]
    await platform.ends_whole(run_id)


async def test_the_last_step_may_end_its_run_while_the_worker_drains(start_platform: StartPlatform) -> None:
    platform = await start_platform(worker_grace_seconds=30.0)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", UNTIL_GO))
        await platform.until_begun(run_id)
        letting_go = asyncio.create_task(platform.let_go(run_id))
    await letting_go
    assert (await platform.run(run_id)).status is RunStatus.COMPLETED


async def test_a_run_that_pauses_before_its_next_try_is_handed_back_at_once(start_platform: StartPlatform) -> None:
    platform = await start_platform(worker_grace_seconds=600.0)
    failing = shell("a", "exit 3", retry={"max_attempts": 2, "backoff_seconds": 300})
    async with worker(platform.settings):
        run_id = await platform.submit(failing)

        async def pauses() -> bool:
            return ("a", "retrying") in await platform.step_statuses(run_id)

        await wait_until(pauses)
    assert (await platform.run(run_id)).status is RunStatus.QUEUED
    [step] = await platform.journal(run_id)
    assert (step.status, step.tries) == (StepStatus.PENDING, 1)


async def test_a_worker_that_drains_while_it_claims_hands_back_what_it_was_given(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, may_arrive = asyncio.Event(), asyncio.Event()
    claim = RedisQueue.claim

    async def slowly(self: RedisQueue, *arguments: Any, **options: Any) -> list[Claim]:
        claims = await claim(self, *arguments, **options)
        given.set()
        await may_arrive.wait()
        return claims

    monkeypatch.setattr(RedisQueue, "claim", slowly)
    run_id = await platform.submit(write("a", "a"))
    async with worker(platform.settings):
        await given.wait()
        asyncio.get_running_loop().call_later(0.1, may_arrive.set)
    assert await platform.resources.redis.commands.zcard(platform.resources.redis.keys.leases) == 0
    assert (await platform.run(run_id)).status is RunStatus.QUEUED


@pytest.mark.slow
async def test_a_worker_without_work_ends_at_once_and_counts_no_longer(
    platform: Platform, start_process: StartProcess
) -> None:
    process = await start_process(platform)

    async def counts() -> bool:
        return (await platform.resources.queue.statistics()).workers == 1

    await wait_until(counts)
    process.signal(signal.SIGINT)
    assert await process.ended() == 0
    assert (await platform.resources.queue.statistics()).workers == 0
    assert list(platform.scratch.iterdir()) == []


@pytest.mark.slow
async def test_a_second_signal_ends_it_without_ado(platform: Platform, start_process: StartProcess) -> None:
    process = await start_process(platform, worker_grace_seconds=600.0)
    run_id = await platform.submit(shell("a", UNTIL_GO))
    await platform.until_begun(run_id)
    process.signal(signal.SIGTERM)
    await process.until_logged("draining")
    process.signal(signal.SIGTERM)
    assert await process.ended() == 1
