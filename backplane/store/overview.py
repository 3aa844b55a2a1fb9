"""What an overview shows, each by an index, so that it costs the same however many runs there were.

Of what is over, the last hour counts: who wants more asks for lists.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from backplane.domain.decisions import DecisionStatus
from backplane.domain.overview import EndedCount, RunsOverview
from backplane.domain.runs import FINAL, RunStatus
from backplane.store.database import Database
from backplane.store.run_lists import listed_run, listed_runs
from backplane.store.tables import decisions, runs

HOUR = timedelta(hours=1)
TIMED_RUNS = 2_000
"""The runs that ended last whose times are looked at."""
FAILED_SHOWN = 10


class minute_of(FunctionElement[int]):
    """Whole minutes since 1970 of a moment."""

    type = Integer()
    inherit_cache = True


@compiles(minute_of, "sqlite")
def _(element: minute_of, compiler: Any, **options: Any) -> str:
    return f"CAST(strftime('%s', {compiler.process(element.clauses, **options)}) AS INTEGER) / 60"


@compiles(minute_of, "postgresql")
def _(element: minute_of, compiler: Any, **options: Any) -> str:
    return f"CAST(floor(extract(epoch FROM {compiler.process(element.clauses, **options)}) / 60) AS integer)"


class Overviews:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, user_id: str | None, asked: str, now: datetime) -> RunsOverview:
        """The runs of one user, or of all (None). `asked`: the user whose open decisions are counted."""
        # Not as the bare column: by that one's index SQLite would go through all runs of the user.
        mine = [func.coalesce(runs.c.user_id, "") == user_id] if user_id is not None else []
        return await self._database.read(lambda connection: _overview(connection, mine, asked, now))


def _overview(connection: Connection, mine: Sequence[ColumnElement[bool]], asked: str, now: datetime) -> RunsOverview:
    going_on = [status.value for status in RunStatus if status not in FINAL]
    counted = select(runs.c.status, func.count()).where(runs.c.status.in_(going_on), *mine).group_by(runs.c.status)
    lately = [runs.c.finished_at.is_not(None), runs.c.finished_at > now - HOUR, *mine]
    minute = minute_of(runs.c.finished_at).label("minute")
    ended = select(minute, runs.c.status, func.count().label("number")).where(*lately).group_by(minute, runs.c.status)
    timed = (
        select(runs.c.queued_at, runs.c.started_at, runs.c.finished_at)
        .where(*lately)
        .order_by(runs.c.finished_at.desc())
        .limit(TIMED_RUNS)
    )
    failed = (
        listed_runs()
        .where(runs.c.status == RunStatus.FAILED.value, *mine)
        .order_by(runs.c.id.desc())
        .limit(FAILED_SHOWN)
    )
    open_ = select(func.count(), func.min(decisions.c.created_at)).where(
        decisions.c.user_id == asked, decisions.c.status == DecisionStatus.PENDING.value
    )
    times = connection.execute(timed).all()
    waiting, oldest = connection.execute(open_).one()
    return RunsOverview(
        under_way={RunStatus(status): count for status, count in connection.execute(counted)},
        ended=[EndedCount(row.minute, RunStatus(row.status), row.number) for row in connection.execute(ended)],
        queue_seconds=[_seconds(row.queued_at, row.started_at) for row in times if row.queued_at and row.started_at],
        run_seconds=[_seconds(row.started_at, row.finished_at) for row in times if row.started_at],
        failed=[listed_run(row) for row in connection.execute(failed)],
        open_decisions=waiting,
        oldest_decision=oldest,
    )


def _seconds(begin: datetime, end: datetime) -> float:
    return max((end - begin).total_seconds(), 0.0)
