"""Lists of runs by every condition, and the overview, on each database."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, update

from backplane.domain.run_lists import RunsWanted
from backplane.domain.runs import Run, RunStatus, new_run_id
from backplane.domain.users import User
from backplane.store import Store
from backplane.store.tables import runs
from tests.submitted import new_run

NOW = datetime.now(UTC)


async def a_run(store: Store, user: User, **values: Any) -> Run:
    return await store.runs.create(new_run(user, id=new_run_id(), **values))


@pytest.mark.parametrize(
    ("conditions", "fits"),
    [
        ({"text": "NEEDLE"}, True),
        ({"text": "need%"}, False),
        ({"queue": "gpu"}, True),
        ({"queue": "default"}, False),
        ({"handler": "crawl"}, False),
        ({"agent": "writer"}, True),
        ({"agent": "default"}, False),
        ({"statuses": (RunStatus.CREATED, RunStatus.FAILED)}, True),
        ({"statuses": (RunStatus.FAILED,)}, False),
        ({"created_from": NOW - timedelta(hours=1), "created_to": NOW + timedelta(hours=1)}, True),
        ({"created_to": NOW - timedelta(hours=1)}, False),
        ({"created_from": NOW + timedelta(hours=1)}, False),
        ({"cost_min": 0, "cost_max": 0}, True),
        ({"cost_min": 1}, False),
    ],
)
async def test_a_run_is_listed_and_counted_where_it_fits(
    store: Store, user: User, conditions: dict[str, Any], fits: bool
) -> None:
    run = await a_run(store, user, prompt="a needle in hay", queue="gpu", agent="writer")
    for whose in (user.id, None):
        wanted = RunsWanted(whose, **conditions)
        found = await store.run_lists.page(wanted)
        assert [each.run.id for each in found.runs] == [run.id] * fits
        assert found.before is None
        assert await store.run_lists.count(wanted) == (int(fits), False)


async def test_pages_of_what_fits_have_each_run_once(store: Store, user: User) -> None:
    made = [(await a_run(store, user, prompt="needle" if number % 2 else "hay")).id for number in range(9)]
    seen, before = list[str](), None
    while True:
        page = await store.run_lists.page(RunsWanted(user.id, text="needle"), before=before, limit=2)
        seen += [each.run.id for each in page.runs]
        if (before := page.before) is None:
            break
    assert seen == sorted((run_id for number, run_id in enumerate(made) if number % 2), reverse=True)


async def test_the_overview_counts_by_state_and_minute(store: Store, user: User, stranger: User) -> None:
    at = NOW - timedelta(minutes=5)
    ended, _, theirs = [await a_run(store, whose) for whose in (user, user, stranger)]
    for run in (ended, theirs):
        values = {
            "status": "failed",
            "queued_at": at - timedelta(seconds=3),
            "started_at": at - timedelta(seconds=2),
            "finished_at": at,
        }
        statement = update(runs).where(runs.c.id == run.id).values(values)
        await store.database.write(partial(Connection.execute, statement=statement))
    found = await store.overviews.of(user.id, user.id, NOW)
    assert {status: count for status, count in found.counts().items() if count} == {
        RunStatus.CREATED: 1,
        RunStatus.FAILED: 1,
    }
    assert [(each.minute, each.count) for each in found.ended] == [(int(at.timestamp()) // 60, 1)]
    assert (found.queue_seconds, found.run_seconds) == ([1.0], [2.0])
    assert [each.run.id for each in found.failed] == [ended.id]
    assert sum((await store.overviews.of(None, user.id, NOW)).counts().values()) == 3
