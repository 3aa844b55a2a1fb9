"""A part goes away in the middle of a run: the run waits for it, says so, and goes on."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from backplane.domain.events import EventType
from backplane.domain.runs import Rights, Run
from backplane.errors import Unavailable
from backplane.process.tasks import end
from backplane.queue.base import Job
from backplane.store.running_runs import RunningRuns
from tests.integration.worker.conftest import StartPlatform
from tests.platform.workers import UNTIL_GO, Platform, worker
from tests.queues import known, postpone
from tests.servers import PostgresServer, RedisServer, S3Server
from tests.submitted import new_run, plan, shell
from tests.waiting import wait_until
from worker import reaper as reaper_module
from worker import reconciler as reconciler_module
from worker.reaper import Reaper
from worker.reconciler import Reconciler


async def begun_run(platform: Platform) -> str:
    """Its step a waits for `let_go`, then changes the workspace; its step b follows."""
    run_id = await platform.submit(shell("a", f"{UNTIL_GO}; echo a >> marks"), shell("b", "echo b >> marks"))
    await platform.until_begun(run_id)
    return run_id


async def ended_whole(platform: Platform, run_id: str) -> Run:
    run = await platform.completed(run_id)
    assert (await platform.read(run_id, "marks")).split() == [b"a", b"b"]
    await platform.ends_whole(run_id)
    return run


# --- Redis ---


async def test_redis_is_emptied_in_the_middle_of_a_run(working_platform: Platform) -> None:
    platform = working_platform
    run_id = await begun_run(platform)
    await platform.resources.redis.commands.flushall()

    async def is_known_again() -> bool:
        return (await known(platform.resources.queue, [run_id])) == [True]

    await wait_until(is_known_again, what="its worker writes it to Redis again")
    await platform.let_go(run_id)
    run = await ended_whole(platform, run_id)
    assert (run.generation, run.attempt) == (1, 1)


async def test_redis_is_emptied_while_runs_are_queued(platform: Platform) -> None:
    run_ids = [await platform.submit(shell("a", "true")) for _ in range(3)]
    await platform.resources.redis.commands.flushall()
    async with worker(platform.settings):
        for run_id in run_ids:
            await platform.completed(run_id)
            await platform.ends_whole(run_id)


async def test_redis_is_stopped_and_comes_back_empty(
    start_platform: StartPlatform, own_redis: Callable[..., RedisServer]
) -> None:
    server = own_redis()
    platform = await start_platform(redis_url=server.url)
    async with worker(platform.settings):
        run_id = await begun_run(platform)
        queued = await platform.submit(shell("a", "true"))
        async with platform.published(run_id) as published:
            server.kill()
            await platform.let_go(run_id)
            await ended_whole(platform, run_id)
            while_away = await platform.submit(shell("a", "true"))
            server.start()
            await platform.completed(queued)
            await platform.completed(while_away)
            await wait_until(lambda: EventType.END in [event.type for event in published])


# --- the database ---


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(PostgresServer.stop, marks=pytest.mark.slow, id="restarted"),
        pytest.param(PostgresServer.kill, id="killed"),
    ],
)
async def test_postgres_goes_away_in_the_middle_of_a_run(
    start_platform: StartPlatform, own_postgres: Callable[[], PostgresServer], end: Callable[[PostgresServer], None]
) -> None:
    server = own_postgres()
    platform = await start_platform(database_url=server.url())
    async with worker(platform.settings) as working:
        run_id = await begun_run(platform)
        end(server)
        for checkout in platform.checkouts(run_id):
            (checkout / "go").touch()
        assert not working.done()
        server.start()
        run = await ended_whole(platform, run_id)
    assert run.attempt == 1


@pytest.mark.slow
async def test_a_worker_keeps_its_run_while_the_database_hangs_for_longer_than_a_lease(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, whole, asked = asyncio.Event(), RunningRuns.rights, asyncio.Event()

    async def hang(self: RunningRuns, generations: Mapping[str, int]) -> Rights:
        asked.set()
        await answers.wait()
        return await whole(self, generations)

    monkeypatch.setattr(RunningRuns, "rights", hang)
    async with worker(platform.settings):
        run_id = await begun_run(platform)
        await asked.wait()
        await asyncio.sleep(1.5 * platform.settings.lease_seconds)  # what is tested is that nothing happens meanwhile
        answers.set()
        await platform.let_go(run_id)
        run = await ended_whole(platform, run_id)
    assert run.generation == 1


async def test_a_commit_whose_answer_was_lost_is_made_once(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is lost after each commit, before its answer arrives: the write is made again."""
    whole = RunningRuns.commit
    written: list[str] = []

    async def answer_lost(self: RunningRuns, run_id: str, generation: int, *more: Any) -> None:
        await whole(self, run_id, generation, *more)
        written.append(run_id)
        if len(written) == 1:
            raise Unavailable("the database does not answer", part="database")

    monkeypatch.setattr(RunningRuns, "commit", answer_lost)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", "echo a >> marks"), shell("b", "echo b >> marks"))
        run = await platform.completed(run_id)
    assert (run.generation, run.attempt) == (1, 1)
    await platform.ends_whole(run_id)


# --- the workspace ---


async def test_s3_is_away_for_a_while_in_the_middle_of_a_run(
    start_platform: StartPlatform, own_s3: Callable[[], S3Server]
) -> None:
    server = own_s3()
    platform = await start_platform(
        s3_bucket=server.create_bucket(),
        s3_endpoint=server.endpoint,
        s3_region=server.region,
        s3_access_key=server.access_key,
        s3_secret_key=server.secret_key,
    )
    async with worker(platform.settings):
        run_id = await begun_run(platform)
        server.stop()
        for checkout in platform.checkouts(run_id):
            (checkout / "go").touch()

        async def is_logged() -> bool:
            return any(data.get("level") == "warning" for data in await platform.event_data(run_id, EventType.LOG))

        await wait_until(is_logged, 20.0, "the run says that its workspace is away")
        server.start()
        run = await ended_whole(platform, run_id)
    assert run.attempt == 1
    [warning, *_] = [
        data for data in await platform.event_data(run_id, EventType.LOG) if data.get("level") == "warning"
    ]
    assert "trying again in" in warning["line"]


# --- the reaper, and what it lets compare ---


def reconciler_of(platform: Platform, lease_seconds: float) -> Reconciler:
    resources = platform.resources
    return Reconciler(resources.store.runs, resources.queue, lease_seconds=lease_seconds)


async def test_five_reapers_at_once_queue_a_forgotten_run_once(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "PUSH_SECONDS", 0.0)
    resources = platform.resources
    for _ in range(3):
        await resources.store.runs.create(new_run(platform.user, given_plan=plan(shell("a", "true"))), start=True)
    reconcilers = [reconciler_of(platform, lease_seconds=1.0) for _ in range(5)]
    found = await asyncio.gather(*(reconciler.reconcile() for reconciler in reconcilers))
    assert sum(one.queued for one in found) == 3
    assert sum((await resources.queue.statistics()).queued.values()) == 3


async def test_a_run_that_the_api_is_about_to_push_is_left_to_it(platform: Platform) -> None:
    resources = platform.resources
    await resources.store.runs.create(new_run(platform.user), start=True)
    reconciler = reconciler_of(platform, lease_seconds=1.0)
    assert [(await reconciler.reconcile()).queued for _ in range(2)] == [0, 0]


async def test_a_running_run_that_redis_does_not_know_is_left_to_its_worker_for_a_lease(platform: Platform) -> None:
    resources = platform.resources
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    await platform.taken(claim)
    await resources.redis.commands.flushall()
    patient = reconciler_of(platform, lease_seconds=600.0)
    assert [(await patient.reconcile()).queued for _ in range(2)] == [0, 0]
    assert (await reconciler_of(platform, lease_seconds=0.0).reconcile()).queued == 1
    [again] = await resources.queue.claim("worker", 1)
    assert (again.run_id, again.generation) == (run_id, claim.generation + 1)


async def test_a_worker_has_a_whole_lease_to_write_a_run_again_that_was_missing_before_it_was_taken(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "PUSH_SECONDS", 600.0)
    run_id = await platform.submit(shell("a", "true"))
    await platform.resources.redis.commands.flushall()
    reconciler = reconciler_of(platform, lease_seconds=0.2)

    async def queued_again() -> int:
        return (await reconciler.reconcile()).queued

    await queued_again()
    await asyncio.sleep(0.2)  # longer than a lease: what is tested is that this time does not count
    await platform.resources.store.running_runs.take(run_id, 1)
    assert await queued_again() == 0
    assert await wait_until(queued_again) == 1


async def test_only_the_leading_worker_compares_the_database_with_redis(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "PUSH_SECONDS", 0.0)
    resources, leads = platform.resources, False
    run = await resources.store.runs.create(new_run(platform.user), start=True)
    reaper = Reaper(resources, lease_seconds=1.0, heartbeat_seconds=0.1, reconcile_seconds=0.01, leads=lambda: leads)
    reaping = asyncio.create_task(reaper.run())
    await asyncio.sleep(0.1)  # several rounds; there is nothing to wait for that does not happen
    assert await known(resources.queue, [run.id]) == [False]
    leads = True

    async def is_queued() -> bool:
        return await known(resources.queue, [run.id]) == [True]

    await wait_until(is_queued)
    await end(reaping)


async def test_a_run_that_was_put_off_is_taken_up_when_its_time_comes(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper_module, "REAP_SECONDS", 600.0)
    resources = platform.resources
    await platform.submit(shell("a", "true"))
    [claim] = await resources.queue.claim("worker", 1)
    reaper = Reaper(resources, lease_seconds=600.0, heartbeat_seconds=0.1, reconcile_seconds=600.0, leads=lambda: False)
    reaping = asyncio.create_task(reaper.run())
    await postpone(resources.queue, claim, 0.05)
    reaper.expect(0.05)

    async def waits_again() -> bool:
        return sum((await resources.queue.statistics()).queued.values()) == 1

    await wait_until(waits_again)
    await end(reaping)


async def test_the_reaper_pages_through_all_unfinished_runs(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler_module, "PUSH_SECONDS", 0.0)
    monkeypatch.setattr(reconciler_module, "BATCH", 2)
    resources = platform.resources
    for _ in range(5):
        await resources.store.runs.create(new_run(platform.user), start=True)
    assert (await reconciler_of(platform, lease_seconds=1.0).reconcile()).queued == 5


async def test_a_run_that_redis_takes_for_queued_and_the_database_does_not_is_given_up(
    working_platform: Platform,
) -> None:
    platform = working_platform
    run = await platform.resources.store.runs.create(new_run(platform.user))
    await platform.resources.queue.enqueue([Job(run.id, run.user_id, run.priority)])

    async def is_given_up() -> bool:
        return (await known(platform.resources.queue, [run.id])) == [False]

    await wait_until(is_given_up)
    assert await platform.run(run.id) == run
