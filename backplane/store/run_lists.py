"""Lists and counts of runs, by what a person looks for.

A condition with an index (whose, state, beginning of the id) names the runs that are looked at; the other ones are
tried on at most LOOKED_THROUGH of them, the newest first. So a question costs the same however many runs there are, and
a page that found little says where to go on.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select

from backplane.domain.run_lists import COUNTED_MAX, LOOKED_THROUGH, ListedRun, RunsFound, RunsWanted
from backplane.domain.runs import ids_beginning_with
from backplane.store.database import Database
from backplane.store.runs import RUN_COLUMNS, run_from
from backplane.store.tables import id_begins_with, model_calls, runs, users

_COST = (
    select(func.coalesce(func.sum(model_calls.c.micro_usd), 0))
    .where(model_calls.c.run_id == runs.c.id)
    .correlate(runs)
    .scalar_subquery()
)


def listed_runs() -> Select[Any]:
    """Runs with their users' names and what they cost."""
    query = select(*RUN_COLUMNS, users.c.name.label("user_name"), _COST.label("cost"))
    return query.join(users, users.c.id == runs.c.user_id)


class RunLists:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, wanted: RunsWanted, *, before: str | None = None, limit: int = 50) -> RunsFound:
        """Newest first. `before`: the cursor of the page before."""
        fitting = listed_runs().order_by(runs.c.id.desc()).limit(limit + 1)
        tried = _tried(wanted)
        if not tried:
            query = fitting.where(*_indexed(wanted, before))
            rows = await self._database.read(lambda connection: connection.execute(query).all())
            last = rows[limit - 1].id if len(rows) > limit else None
            return RunsFound([listed_run(row) for row in rows[:limit]], last)
        within = _looked_at(wanted, before).subquery()
        query = fitting.where(runs.c.id.in_(select(within.c.id)), *tried)
        end = select(func.count(), func.min(within.c.id)).select_from(within)

        def read(connection: Any) -> tuple[Any, Any]:
            return connection.execute(query).all(), connection.execute(end).one()

        rows, (looked_through, oldest) = await self._database.read(read)
        if len(rows) > limit:
            return RunsFound([listed_run(row) for row in rows[:limit]], rows[limit - 1].id)
        return RunsFound([listed_run(row) for row in rows], oldest if looked_through == LOOKED_THROUGH else None)

    async def count(self, wanted: RunsWanted) -> tuple[int, bool]:
        """How many runs fit, and whether there may be more: COUNTED_MAX are counted at most, among LOOKED_THROUGH."""
        tried = _tried(wanted)
        if tried:
            within = _looked_at(wanted, None).subquery()
            fitting = select(runs.c.id).where(runs.c.id.in_(select(within.c.id)), *tried)
        else:
            fitting = select(runs.c.id).where(*_indexed(wanted, None))
        found = select(func.count()).select_from(fitting.limit(COUNTED_MAX + 1).subquery())
        looked = select(func.count()).select_from(_looked_at(wanted, None).subquery()) if tried else None

        def read(connection: Any) -> tuple[int, int]:
            return connection.scalar(found), connection.scalar(looked) if looked is not None else 0

        count, looked_through = await self._database.read(read)
        return min(count, COUNTED_MAX), count > COUNTED_MAX or looked_through == LOOKED_THROUGH


def _looked_at(wanted: RunsWanted, before: str | None) -> Select[Any]:
    return select(runs.c.id).where(*_indexed(wanted, before)).order_by(runs.c.id.desc()).limit(LOOKED_THROUGH)


def _indexed(wanted: RunsWanted, before: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.user_id is not None:
        conditions.append(runs.c.user_id == wanted.user_id)
    if wanted.statuses:
        conditions.append(runs.c.status.in_([status.value for status in wanted.statuses]))
    if wanted.beginning:
        conditions.append(id_begins_with(runs.c.id, wanted.beginning))
    if before:
        conditions.append(runs.c.id < before)
    if wanted.created_from is not None:
        conditions.append(runs.c.id >= _first_id(wanted.created_from, earlier_seconds=_SLACK_SECONDS))
        conditions.append(runs.c.created_at >= wanted.created_from)
    if wanted.created_to is not None:
        conditions.append(runs.c.id <= _first_id(wanted.created_to, earlier_seconds=-_SLACK_SECONDS))
        conditions.append(runs.c.created_at < wanted.created_to)
    return conditions


_SLACK_SECONDS = 60
"""An id has the time at which it was made, on the clock of its machine, a moment before the run's own time."""


def _first_id(moment: datetime, *, earlier_seconds: int) -> str:
    """The lowest id that can be made so long before the moment."""
    milliseconds = max(int((moment.timestamp() - earlier_seconds) * 1000), 0) & 0xFFFF_FFFF_FFFF
    time = f"{milliseconds:012x}"
    low_and_high = ids_beginning_with(f"{time[:8]}-{time[8:]}")
    assert low_and_high is not None, "digits of an id"
    return low_and_high[0]


def _tried(wanted: RunsWanted) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.text:
        conditions.append(runs.c.prompt.icontains(wanted.text, autoescape=True))
    for column, value in ((runs.c.queue, wanted.queue), (runs.c.handler, wanted.handler), (runs.c.agent, wanted.agent)):
        if value is not None:
            conditions.append(column == value)
    if wanted.cost_min is not None:
        conditions.append(wanted.cost_min <= _COST)
    if wanted.cost_max is not None:
        conditions.append(wanted.cost_max >= _COST)
    return conditions


def listed_run(row: Any) -> ListedRun:
    """Of a row of `listed_runs`."""
    values = dict(row._mapping)
    name, cost = values.pop("user_name"), int(values.pop("cost"))
    return ListedRun(run_from(values), name, cost)
