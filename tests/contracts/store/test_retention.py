"""What is past its time is found, and nothing else is."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from backplane.domain.dead_letters import DeadReason
from backplane.domain.events import EventType, encode
from backplane.domain.retention import Expired, LeasedRun
from backplane.domain.runs import Run, RunError, RunStatus
from backplane.domain.users import User
from backplane.errors import NotFound, TransitionNotAllowed
from backplane.store import Store
from backplane.store.run_transaction import RunTransaction
from backplane.store.tables import runs
from tests.submitted import new_run

NOW = datetime.now(UTC)
LIMIT = NOW - timedelta(days=30)
TICK = timedelta(seconds=1)
OVER = [Expired.RUN, Expired.FILES, Expired.EVENTS]


async def run_that_ended(
    store: Store, user: User, at: datetime, status: RunStatus = RunStatus.COMPLETED, *, lines: int = 0
) -> Run:
    run = await store.runs.create(new_run(user, created_at=at), start=True)
    await store.running_runs.take(run.id, 1)

    def end(transaction: RunTransaction) -> None:
        transaction.add_events([encode(run.id, number, EventType.LOG, {"line": "x"}) for number in range(3, 3 + lines)])
        transaction.add_events([encode(run.id, 3 + lines, EventType.END, {"status": status})])
        transaction.finish(status, None)

    await store.running_runs.write(run.id, 1, end)
    await change(store, run, finished_at=at)
    return run


async def change(store: Store, run: Run, **values: Any) -> None:
    statement = update(runs).where(runs.c.id == run.id).values(values)
    await store.database.write(lambda connection: connection.execute(statement))


async def lease(store: Store, expired: Expired, *, limit: int = 100, seconds: float = 60.0) -> list[str]:
    return [run.id for run in await store.retention.lease(expired, LIMIT, limit, seconds=seconds)]


@pytest.mark.parametrize("expired", OVER)
@pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])
async def test_a_run_is_past_its_time_when_it_ended_before_the_limit(
    store: Store, user: User, expired: Expired, status: RunStatus
) -> None:
    await run_that_ended(store, user, LIMIT, status)
    await run_that_ended(store, user, LIMIT + TICK, status)
    old = await run_that_ended(store, user, LIMIT - TICK, status)
    assert await lease(store, expired) == [old.id]


async def test_a_run_that_was_never_started_is_past_its_time_by_its_creation(store: Store, user: User) -> None:
    old = await store.runs.create(new_run(user, created_at=LIMIT - TICK))
    await store.runs.create(new_run(user, created_at=LIMIT))
    assert await lease(store, Expired.UNSTARTED_RUN) == [old.id]


def as_queued(transaction: RunTransaction) -> None:
    transaction.queue_again(attempt=2, error=None)


def as_waiting(transaction: RunTransaction) -> None:
    transaction.wait_for_person(RunError("uncertain", "who knows"))


@pytest.mark.parametrize("expired", Expired)
async def test_what_may_still_go_on_is_never_past_its_time(store: Store, user: User, expired: Expired) -> None:
    long_ago = LIMIT - timedelta(days=1000)
    writes: list[Callable[[RunTransaction], None]] = [as_queued, as_waiting, lambda transaction: None]
    for write in writes:
        run = await store.runs.create(new_run(user, created_at=long_ago), start=True)
        await store.running_runs.take(run.id, 1)
        await store.running_runs.write(run.id, 1, write)
    await store.runs.create(new_run(user, created_at=long_ago), start=True)
    if expired is not Expired.UNSTARTED_RUN:
        await store.runs.create(new_run(user, created_at=long_ago))
    assert await lease(store, expired) == []


@pytest.mark.parametrize("expired", OVER)
async def test_a_dead_letter_keeps_its_run(store: Store, user: User, expired: Expired) -> None:
    run = await store.runs.create(new_run(user), start=True)
    await store.running_runs.take(run.id, 1)

    def end(transaction: RunTransaction) -> None:
        transaction.dead_letter(DeadReason.POISON)
        transaction.finish(RunStatus.FAILED, None)

    await store.running_runs.write(run.id, 1, end)
    await change(store, run, finished_at=LIMIT - TICK)
    assert await lease(store, expired) == []
    await store.dead_letters.purge(run.id)
    assert await lease(store, expired) == [run.id]


async def test_the_oldest_go_first_and_only_as_many_as_were_asked_for(store: Store, user: User) -> None:
    young, old = [await run_that_ended(store, user, LIMIT - days * TICK) for days in (1, 2)]
    assert await lease(store, Expired.RUN, limit=1) == [old.id]
    assert await lease(store, Expired.RUN, limit=1) == [young.id]


async def test_two_who_lease_at_the_same_moment_never_share_a_run(
    store: Store, second_store: Store, user: User
) -> None:
    made = {(await run_that_ended(store, user, LIMIT - TICK)).id for _ in range(12)}
    found = await asyncio.gather(
        *(lease(part, Expired.RUN, limit=2) for _ in range(4) for part in (store, second_store))
    )
    leased = [run_id for ids in found for run_id in ids] + await lease(store, Expired.RUN)
    assert len(leased) == len(made)
    assert set(leased) == made


async def test_a_lease_that_was_not_used_ends(store: Store, second_store: Store, user: User) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK)
    assert await lease(store, Expired.RUN, seconds=60.0) == [run.id]
    assert await lease(second_store, Expired.RUN) == []
    await change(store, run, retention_lease=datetime.now(UTC) - TICK)
    assert await lease(second_store, Expired.RUN) == [run.id]


async def test_a_run_whose_files_go_is_not_retried_any_more(store: Store, user: User) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK, RunStatus.FAILED)
    assert (await store.runs.get(user.id, run.id)).files_expired_at is None
    await lease(store, Expired.FILES)
    assert (await store.runs.get(user.id, run.id)).files_expired_at is not None
    with pytest.raises(TransitionNotAllowed, match="files"):
        await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)


async def test_a_run_whose_files_go_is_not_started_any_more(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user, created_at=LIMIT - TICK))
    await lease(store, Expired.UNSTARTED_RUN)
    with pytest.raises(TransitionNotAllowed, match="files"):
        await store.runs.start(user.id, run.id)


async def test_files_that_are_gone_are_not_looked_at_again_but_the_run_is(store: Store, user: User) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK)
    await store.retention.files_removed(await lease(store, Expired.FILES))
    assert await lease(store, Expired.FILES) == []
    assert await lease(store, Expired.RUN) == [run.id]


async def test_of_trimmed_events_the_newest_stays(store: Store, user: User) -> None:
    runs_ = [await run_that_ended(store, user, LIMIT - TICK, lines=lines) for lines in (0, 4)]
    kept = await run_that_ended(store, user, NOW, lines=4)
    leased = await lease(store, Expired.EVENTS)
    spans = await store.retention.spans(leased)
    assert [(span.first, span.last) for span in sorted(spans, key=lambda span: span.last)] == [(1, 3), (1, 7)]
    assert await store.retention.delete_events(spans) == 2 + 6
    await store.retention.events_trimmed(leased, LIMIT)
    for run, last in zip(runs_, (3, 7), strict=True):
        assert [event.id for event in await store.events.after(run.id, 0, 100)] == [last]
    assert len(await store.events.after(kept.id, 0, 100)) == 7
    assert await lease(store, Expired.EVENTS) == []
    assert await store.retention.spans(leased) == []


async def test_a_trimmed_run_that_was_retried_is_trimmed_again_when_it_is_old_again(store: Store, user: User) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK, RunStatus.FAILED, lines=2)
    await store.retention.events_trimmed(await lease(store, Expired.EVENTS), LIMIT)
    changed, events = await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    assert changed.status is RunStatus.QUEUED
    # Numbers go on from where they were.
    assert [event.id for event in events] == [6]
    await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    assert await lease(store, Expired.EVENTS) == []
    await change(store, run, finished_at=LIMIT - TICK)
    assert await lease(store, Expired.EVENTS) == [run.id]


async def test_a_run_that_is_retried_while_its_events_are_trimmed_is_not_taken_for_done(
    store: Store, user: User
) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK, RunStatus.FAILED, lines=2)
    leased = await lease(store, Expired.EVENTS)
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=False)
    await store.retention.events_trimmed(leased, LIMIT)
    await store.running_runs.take(run.id, 2)
    await store.running_runs.write(run.id, 2, lambda transaction: transaction.finish(RunStatus.FAILED, None))
    await change(store, run, finished_at=LIMIT - TICK, retention_lease=None)
    assert await lease(store, Expired.EVENTS) == [run.id]


async def test_a_run_goes_with_all_that_hangs_on_it_and_only_when_it_was_leased(store: Store, user: User) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK, lines=2)
    assert await store.retention.delete_runs([run.id]) == 0
    assert await lease(store, Expired.RUN) == [run.id]
    assert await store.retention.delete_runs([run.id]) == 1
    with pytest.raises(NotFound):
        await store.runs.get(user.id, run.id)
    assert await store.events.last_id(run.id) == 0


async def test_who_leases_learns_whose_run_it_is(store: Store, user: User) -> None:
    run = await run_that_ended(store, user, LIMIT - TICK)
    assert await store.retention.lease(Expired.RUN, LIMIT, 1, seconds=60.0) == [LeasedRun(run.id, user.id)]


@pytest.mark.parametrize(
    ("condition", "index"),
    [
        ("files_removed_at IS NULL", "ix_runs_finished_with_files"),
        ("events_trimmed_at IS NULL", "ix_runs_finished_with_events"),
        ("prompt != ''", "ix_runs_finished"),
    ],
)
async def test_what_is_old_is_found_by_an_index(store: Store, condition: str, index: str) -> None:
    def plan(connection: Connection) -> str:
        on_postgres = connection.dialect.name == "postgresql"
        if on_postgres:
            connection.exec_driver_sql("SET enable_seqscan = off")
        query = (
            f"SELECT id FROM runs WHERE finished_at < CURRENT_TIMESTAMP AND {condition} ORDER BY finished_at LIMIT 5"
        )
        return str(connection.exec_driver_sql(f"EXPLAIN {'' if on_postgres else 'QUERY PLAN'} {query}").all())

    assert index in await store.database.read(plan)


async def test_leases_say_nothing_of_a_run_that_is_gone(store: Store) -> None:
    gone = ["00000000-0000-0000-0000-000000000000"]
    assert await store.retention.spans(gone) == []
    await store.retention.files_removed(gone)
    await store.retention.events_trimmed(gone, LIMIT)
    assert await store.retention.delete_runs(gone) == 0
    assert await store.database.read(lambda connection: connection.execute(select(runs)).all()) == []
