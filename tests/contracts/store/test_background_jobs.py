"""Bulk actions and exports as rows: which runs, how far, who may see it, and one at a time who carries it out."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backplane.domain.background_jobs import BackgroundJob, BulkAction, ItemStatus, JobStatus, NewJob, RunFilter
from backplane.domain.dead_letters import DeadReason
from backplane.domain.runs import Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.errors import Conflict, IdempotencyKeyReused, NotFound, Superseded, TooLarge, TooManyJobs
from backplane.store import Store
from backplane.store.tables import background_jobs, runs
from tests.contracts.store.test_dead_letters import dead
from tests.submitted import new_run

FAILED = RunFilter(statuses=(RunStatus.FAILED,))


async def ended(store: Store, user: User, status: RunStatus = RunStatus.FAILED, **values: Any) -> Run:
    run = await store.runs.create(new_run(user, **values), start=True)
    assert await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(status, None))
    return run


async def bulk(
    store: Store,
    user: User,
    wanted: RunFilter = FAILED,
    action: BulkAction = BulkAction.RETRY,
    *,
    everybody: bool = False,
    most_runs: int = 100,
    most_jobs: int = 100,
    idempotency: tuple[str, str] | None = None,
) -> BackgroundJob:
    owner = None if everybody else user.id
    return await store.background_jobs.create_bulk(
        NewJob(new_run_id(), user.id, idempotency), action, wanted, owner, most_runs=most_runs, most_jobs=most_jobs
    )


async def run_ids(store: Store, job: BackgroundJob) -> Sequence[str]:
    return [item.run_id for item in await store.background_jobs.items(job.id, limit=1000)]


async def claimed(store: Store, job: BackgroundJob, seconds: float = 600) -> BackgroundJob:
    found = await store.background_jobs.claim(job.id, seconds=seconds)
    assert found is not None
    return found


# --- which runs ---


async def test_a_bulk_action_is_about_the_users_runs_of_the_moment_when_it_is_asked_for(
    store: Store, user: User, stranger: User
) -> None:
    mine = [await ended(store, user) for _ in range(2)]
    await ended(store, user, RunStatus.COMPLETED)
    await ended(store, stranger)
    job = await bulk(store, user)
    await ended(store, user)
    assert await run_ids(store, job) == [run.id for run in mine]
    assert (job.total, job.done, job.refused, job.status) == (2, 0, 0, JobStatus.QUEUED)


async def created(store: Store, run: Run, at: datetime) -> None:
    statement = update(runs).where(runs.c.id == run.id).values(created_at=at)
    await store.database.write(lambda connection: connection.execute(statement))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (RunFilter(agent="reporter"), [1]),
        (RunFilter(statuses=(RunStatus.COMPLETED, RunStatus.FAILED)), [0, 1, 2]),
        (RunFilter(created_after=datetime(2030, 1, 2, tzinfo=UTC)), [1, 2]),
        (RunFilter(created_before=datetime(2030, 1, 2, tzinfo=UTC)), [0]),
        (RunFilter(agent="reporter", created_before=datetime(2030, 1, 2, tzinfo=UTC)), []),
    ],
)
async def test_a_filter_names_the_runs_for_which_all_of_it_holds(
    store: Store, user: User, wanted: RunFilter, expected: list[int]
) -> None:
    made = [
        await ended(store, user),
        await ended(store, user, agent="reporter"),
        await ended(store, user, RunStatus.COMPLETED),
    ]
    for day, run in enumerate(made, 1):
        await created(store, run, datetime(2030, 1, day, tzinfo=UTC))
    job = await bulk(store, user, wanted, BulkAction.REMOVE)
    assert await run_ids(store, job) == [made[number].id for number in expected]
    assert await store.background_jobs.count(BulkAction.REMOVE, wanted, user.id) == len(expected)


async def test_only_named_runs_are_meant_and_one_of_another_user_is_not_there(
    store: Store, user: User, stranger: User
) -> None:
    mine, other, theirs = await ended(store, user), await ended(store, user), await ended(store, stranger)
    assert await run_ids(store, await bulk(store, user, RunFilter(run_ids=(mine.id,)))) == [mine.id]
    for ask in (
        bulk(store, user, RunFilter(run_ids=(other.id, theirs.id))),
        bulk(store, user, RunFilter(run_ids=("x",))),
    ):
        with pytest.raises(NotFound):
            await ask
    with pytest.raises(NotFound):
        await store.background_jobs.count(BulkAction.RETRY, RunFilter(run_ids=(theirs.id,)), user.id)


async def test_redrive_is_about_everybodys_dead_letters_and_no_other_failed_run(
    store: Store, user: User, stranger: User
) -> None:
    poison = await dead(store, user, DeadReason.POISON)
    theirs = await dead(store, stranger)
    await ended(store, user)
    assert await run_ids(store, await bulk(store, user, FAILED, BulkAction.REDRIVE, everybody=True)) == [
        poison.id,
        theirs.id,
    ]
    only = RunFilter(reason=DeadReason.POISON)
    assert await run_ids(store, await bulk(store, user, only, BulkAction.REDRIVE, everybody=True)) == [poison.id]


@pytest.mark.parametrize(("most", "is_taken"), [(2, True), (1, False)])
async def test_a_bulk_action_names_as_many_runs_as_may_be_and_not_one_more(
    store: Store, user: User, most: int, is_taken: bool
) -> None:
    for _ in range(2):
        await ended(store, user)
    if is_taken:
        assert (await bulk(store, user, most_runs=most)).total == 2
    else:
        with pytest.raises(TooLarge, match="BULK_MAX_RUNS"):
            await bulk(store, user, most_runs=most)
        assert await store.background_jobs.page(user.id, "bulk") == []


# --- whose, and how many ---


async def test_a_user_has_as_many_unfinished_jobs_as_may_be_and_not_one_more(
    store: Store, user: User, stranger: User
) -> None:
    run = await ended(store, user)
    first = await bulk(store, user, most_jobs=2)
    await store.background_jobs.create_export(NewJob(new_run_id(), user.id), run.id, most_jobs=2)
    for _ in range(2):
        with pytest.raises(TooManyJobs, match="JOBS_USER_MAX"):
            await bulk(store, user, most_jobs=2)
    await bulk(store, stranger, most_jobs=2)
    await store.background_jobs.finish(await claimed(store, first), JobStatus.COMPLETED)
    await bulk(store, user, most_jobs=2)


async def test_a_key_belongs_to_its_user_and_stands_for_one_request(store: Store, user: User, stranger: User) -> None:
    async def asked(by: User, digest: str, most_jobs: int = 1) -> str:
        return (await bulk(store, by, most_jobs=most_jobs, idempotency=("key", digest))).id

    first = await asked(user, "one")
    assert await asked(user, "one") == first
    with pytest.raises(IdempotencyKeyReused):
        await asked(user, "another", most_jobs=9)
    assert await asked(stranger, "another") != first


async def test_the_same_request_twice_at_once_is_one_bulk_action(store: Store, user: User) -> None:
    both = await asyncio.gather(*(bulk(store, user, idempotency=("at once", "d")) for _ in range(4)))
    assert len({job.id for job in both}) == 1


async def test_another_users_job_is_not_there(store: Store, user: User, stranger: User) -> None:
    run = await ended(store, user)
    job = await bulk(store, user)
    exported = await store.background_jobs.create_export(NewJob(new_run_id(), user.id), run.id, most_jobs=9)
    store_jobs = store.background_jobs
    for ask in (
        store_jobs.get(stranger.id, job.id, "bulk"),
        store_jobs.stop(stranger.id, job.id),
        store_jobs.get(stranger.id, exported.id, "export"),
        store_jobs.create_export(NewJob(new_run_id(), stranger.id), run.id, most_jobs=9),
        store_jobs.get(user.id, exported.id, "bulk"),
        store_jobs.stop(user.id, exported.id),
    ):
        with pytest.raises(NotFound):
            await ask
    assert await store_jobs.page(stranger.id, "bulk") == []
    assert await store_jobs.get(user.id, job.id, "bulk") == job


async def test_jobs_come_newest_first_in_pages(store: Store, user: User) -> None:
    made = [await bulk(store, user) for _ in range(3)]
    first = await store.background_jobs.page(user.id, "bulk", limit=2)
    rest = await store.background_jobs.page(user.id, "bulk", before=first[-1].id)
    assert [job.id for job in [*first, *rest]] == [job.id for job in reversed(made)]


async def test_a_run_that_is_past_its_time_is_not_exported(store: Store, user: User) -> None:
    run = await ended(store, user)
    await store.retention.lease_one(user.id, run.id, seconds=60)
    with pytest.raises(Conflict, match="past its time"):
        await store.background_jobs.create_export(NewJob(new_run_id(), user.id), run.id, most_jobs=9)


# --- carried out by one at a time ---


async def test_one_claims_a_job_and_another_gets_it_when_the_claim_is_over_or_given_back(
    store: Store, user: User
) -> None:
    job, jobs = await bulk(store, user), store.background_jobs
    assert await jobs.due(10) == [(job.id, 0)]
    first = await claimed(store, job)
    assert (first.status, first.generation, await jobs.claim(job.id, seconds=60), await jobs.due(10)) == (
        JobStatus.RUNNING,
        1,
        None,
        [],
    )
    await jobs.release(first)
    assert await jobs.due(10) == [(job.id, 1)]
    second = await claimed(store, job, seconds=0)
    assert (await claimed(store, job)).generation == 3
    with pytest.raises(Superseded):
        await jobs.release(second)


async def test_a_job_that_is_to_wait_is_not_due(store: Store, user: User) -> None:
    job = await bulk(store, user)
    await store.background_jobs.release(await claimed(store, job), after_seconds=60)
    assert (await store.background_jobs.due(10), await store.background_jobs.claim(job.id, seconds=1)) == ([], None)


async def test_a_new_job_is_left_to_the_api_for_a_while(store: Store, user: User) -> None:
    job = await bulk(store, user)
    assert await store.background_jobs.due(10, age_seconds=60) == []
    assert await store.background_jobs.due(10) == [(job.id, 0)]


async def test_nothing_is_written_by_an_older_claim(store: Store, user: User) -> None:
    await ended(store, user)
    job, jobs = await bulk(store, user), store.background_jobs
    old = await claimed(store, job, seconds=0)
    [item] = await jobs.left(old, 10)
    new = await claimed(store, job)
    for write in (
        jobs.begin(old, item, seconds=60),
        jobs.settle(old, item, ItemStatus.DONE),
        jobs.postpone(old, item),
        jobs.renew(old, seconds=60),
        jobs.progress(old, 1, 1, seconds=60),
        jobs.finish(old, JobStatus.COMPLETED),
    ):
        with pytest.raises(Superseded):
            await write
    assert await jobs.left(new, 10) == [item]


async def test_what_came_of_each_run_is_counted_once(store: Store, user: User) -> None:
    for _ in range(3):
        await ended(store, user)
    job, jobs = await claimed(store, await bulk(store, user)), store.background_jobs
    one, two, three = await jobs.left(job, 10)
    await jobs.begin(job, one, seconds=60)
    for _ in range(2):
        await jobs.settle(job, one, ItemStatus.DONE)
    await jobs.settle(job, two, ItemStatus.REFUSED, "no\0room")
    found = await jobs.get(user.id, job.id, "bulk")
    assert (found.done, found.refused, await jobs.left(job, 10)) == (1, 1, [three])
    [refused] = await jobs.items(job.id, status=ItemStatus.REFUSED)
    assert (refused.run_id, refused.detail) == (two.run_id, "no�room")


async def test_an_action_that_began_says_so_and_is_as_before_when_it_is_postponed(store: Store, user: User) -> None:
    await ended(store, user)
    job, jobs = await claimed(store, await bulk(store, user)), store.background_jobs
    [item] = await jobs.left(job, 10)
    before = datetime.now(UTC)
    await jobs.begin(job, item, seconds=60)
    [begun] = await jobs.left(job, 10)
    assert (begun.status, begun.began_at is not None and begun.began_at >= before) == (ItemStatus.BEGUN, True)
    await jobs.postpone(job, item)
    assert await jobs.left(job, 10) == [item]


async def test_a_stopped_job_is_nobodys_to_carry_out(store: Store, user: User) -> None:
    job, jobs = await bulk(store, user), store.background_jobs
    held = await claimed(store, job)
    stopped = await jobs.stop(user.id, job.id)
    assert (stopped.status, await jobs.due(10), await jobs.claim(job.id, seconds=1)) == (JobStatus.STOPPED, [], None)
    with pytest.raises(Superseded):
        await jobs.renew(held, seconds=60)
    assert await jobs.stop(user.id, job.id) == stopped


# --- what is past its time ---


async def test_an_export_is_expired_after_its_time_and_its_row_goes_when_its_archive_is_gone(
    store: Store, user: User
) -> None:
    run, jobs = await ended(store, user), store.background_jobs
    job = await claimed(store, await jobs.create_export(NewJob(new_run_id(), user.id), run.id, most_jobs=9))
    await jobs.finish(job, JobStatus.COMPLETED, result={"bytes": 1, "files": 0}, kept_seconds=3600)
    assert (await jobs.expired(10), await jobs.forget(datetime.now(UTC) + timedelta(days=1), 10)) == ([], 0)
    past = update(background_jobs).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await store.database.write(lambda connection: connection.execute(past))
    assert [expired.id for expired in await jobs.expired(10)] == [job.id]
    await jobs.archive_removed(job.id)
    assert await jobs.expired(10) == []
    assert await jobs.forget(datetime.now(UTC) + timedelta(days=1), 10) == 1
    assert await jobs.page(user.id, "export") == []


async def test_what_is_not_over_is_never_forgotten(store: Store, user: User) -> None:
    job = await bulk(store, user)
    assert await store.background_jobs.forget(datetime.now(UTC) + timedelta(days=1), 10) == 0
    assert (await store.background_jobs.get(user.id, job.id, "bulk")).id == job.id
