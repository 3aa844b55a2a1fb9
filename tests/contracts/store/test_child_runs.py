"""Runs that wait for other runs: a parent is woken by the transaction that ends its child, and never misses it."""

import asyncio
from dataclasses import replace

import pytest

from backplane.domain.events import EventType, encode
from backplane.domain.runs import WAITS_FOR_RUN, Run, RunError, RunIsOver, RunStatus
from backplane.domain.users import User
from backplane.store import RunTransaction, Store
from tests.submitted import new_run

WAITS = RunError(WAITS_FOR_RUN, "its handler waits")


async def family(store: Store, user: User) -> tuple[Run, Run]:
    """A running parent with a child that is queued."""
    parent = await store.runs.create(new_run(user, handler="parent"), start=True)
    await store.running_runs.take(parent.id, 1)
    child = replace(new_run(user, handler="child"), parent_id=parent.id, origin={"kind": "child", "run_id": parent.id})
    events = [encode(child.id, 1, EventType.STATUS, {"status": "queued", "attempt": 1})]

    def start(transaction: RunTransaction) -> None:
        transaction.add_child_run(child, events)

    for _ in range(2):  # the answer of the first commit may have been lost
        await store.running_runs.write(parent.id, 1, start)
    return parent, await store.runs.get(user.id, child.id)


async def wait_for(store: Store, parent: Run, child: Run) -> None:
    await store.running_runs.write(parent.id, 1, lambda transaction: transaction.wait_for_runs(WAITS, [child.id]))


async def finish(store: Store, child: Run, generation: int = 1) -> None:
    await store.running_runs.take(child.id, generation)
    await store.running_runs.write(
        child.id,
        generation,
        lambda transaction: transaction.finish(RunStatus.COMPLETED, None, {"value": 1}, child.parent_id),
    )


async def status(store: Store, run: Run) -> RunStatus:
    found = await store.runs.find(run.id)
    assert found is not None
    return found.status


async def test_a_child_is_made_once_and_queued(store: Store, user: User) -> None:
    _, child = await family(store, user)
    assert (child.status, child.handler) == (RunStatus.QUEUED, "child")
    assert [event.id for event in await store.events.after(child.id, 0, 10)] == [1]


async def test_the_end_of_a_child_queues_the_parent_that_waits(store: Store, user: User) -> None:
    parent, child = await family(store, user)
    await wait_for(store, parent, child)
    assert await status(store, parent) is RunStatus.WAITING
    await finish(store, child)
    assert await status(store, parent) is RunStatus.QUEUED
    last = (await store.events.after(parent.id, 0, 100))[-1]
    assert last.status == RunStatus.QUEUED


@pytest.mark.parametrize("how", ["cancelled", "by its row"])
async def test_every_end_of_a_child_queues_the_parent(store: Store, user: User, how: str) -> None:
    parent, child = await family(store, user)
    await wait_for(store, parent, child)
    if how == "cancelled":
        await store.runs.cancel(user.id, child.id)
    else:
        await store.running_runs.end_by_row(child.id, 1, RunError("not_stored", "no"), None)
    assert await status(store, parent) is RunStatus.QUEUED


async def test_a_parent_does_not_wait_for_what_is_over(store: Store, user: User) -> None:
    parent, child = await family(store, user)
    await finish(store, child)
    with pytest.raises(RunIsOver):
        await wait_for(store, parent, child)
    assert await status(store, parent) is RunStatus.RUNNING


async def test_a_parent_that_waits_for_a_person_is_not_woken_by_a_child(store: Store, user: User) -> None:
    parent, child = await family(store, user)
    error = RunError("approval_required", "may I?")
    await store.running_runs.write(parent.id, 1, lambda transaction: transaction.wait_for_person(error))
    await finish(store, child)
    assert await status(store, parent) is RunStatus.WAITING


async def test_a_parent_and_its_child_at_the_same_moment_lose_no_end(store: Store, user: User) -> None:
    for _ in range(20):
        parent, child = await family(store, user)
        waits, _ = await asyncio.gather(wait_for(store, parent, child), finish(store, child), return_exceptions=True)
        found = await status(store, parent)
        assert found is (RunStatus.RUNNING if isinstance(waits, RunIsOver) else RunStatus.QUEUED), waits
