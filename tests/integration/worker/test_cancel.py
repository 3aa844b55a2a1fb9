"""A cancel takes effect: before a run is claimed, in the middle of a step, and when no worker received it."""

from collections.abc import Callable

import pytest

from backplane.domain.runs import RunStatus
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import UNTIL_GO, Platform, processes_with, worker
from tests.servers import RedisServer
from tests.submitted import shell
from tests.waiting import wait_until


async def test_a_queued_run_is_cancelled_at_once_and_never_taken(platform: Platform) -> None:
    run_id = await platform.submit(shell("a", "true"))
    run = await platform.submission.cancel(platform.user, run_id)
    assert run.status is RunStatus.CANCELLED
    async with worker(platform.settings):
        later = await platform.submit(shell("a", "true"))
        await platform.completed(later)
    assert (await platform.run(run_id)).generation == 0
    assert await platform.step_statuses(run_id) == []
    await platform.ends_whole(run_id)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_run_is_cancelled_in_the_middle_of_a_step_and_its_processes_with_it(
    working_platform: Platform, announced: bool
) -> None:
    platform = working_platform
    marker = f"600.07{int(announced)}"
    run_id = await platform.submit(
        shell("a", "echo a > a"), shell("b", f"trap '' TERM; sleep {marker} & {UNTIL_GO}"), shell("c", "true")
    )
    await platform.until_begun(run_id)
    if announced:
        await platform.submission.cancel(platform.user, run_id)
    else:
        await platform.resources.store.runs.cancel(platform.user.id, run_id)
    run = await platform.until(run_id, RunStatus.CANCELLED)
    assert (run.error, run.attempt) == (None, 1)
    assert processes_with(marker) == []
    assert await platform.read(run_id, "a") == b"a\n"
    assert [step.status.value for step in await platform.journal(run_id)][2] == "skipped"
    await platform.ends_whole(run_id)


async def test_a_run_is_cancelled_also_while_redis_is_away(
    start_platform: StartPlatform, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    marker = "600.0733"
    platform = await start_platform(redis_url=server.url)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", f"sleep {marker} & {UNTIL_GO}"))
        await platform.until_begun(run_id)
        async with platform.published(run_id) as published:
            server.stop()
            await platform.submission.cancel(platform.user, run_id)
            await platform.until(run_id, RunStatus.CANCELLED)
            assert processes_with(marker) == []
            server.start()
            await wait_until(lambda: published, what="watchers get the end")
    await platform.ends_whole(run_id)


async def test_a_run_whose_worker_was_lost_is_cancelled_by_the_next_one(platform: Platform) -> None:
    run_id = await platform.submit(shell("a", "true"))
    await platform.taken(await platform.claimed())
    await platform.submission.cancel(platform.user, run_id)
    async with worker(platform.settings):
        await platform.until(run_id, RunStatus.CANCELLED)
    assert await platform.step_statuses(run_id) == []
    await platform.ends_whole(run_id)
