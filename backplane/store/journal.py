"""The rows of the journal of a run's steps, as they are read; what their states mean is `domain.steps`'."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, or_, select

from backplane.domain.steps import StepRecord, StepStatus
from backplane.store.database import Database
from backplane.store.identity import STEP_PARENT, STEP_ROUND
from backplane.store.tables import run_tools, runs, steps

_FILES = ("files", "attributes")
_RECORDED: dict[str, ColumnElement[Any]] = {
    **{field.name: steps.c[field.name] for field in fields(StepRecord)},
    "parent": STEP_PARENT.label("parent"),
    "round": STEP_ROUND.label("round"),
}


def to_be_done_again(
    run_id: str, plan: Mapping[str, Any] | None, failed_effect: str | None = None
) -> ColumnElement[bool]:
    """The steps that another attempt of a run with this plan does again: those that failed, and those that were skipped
    after a failure. The failure of a sub-step is known to the step above, which went on from there. A step of an older
    plan alone stays as it is.

    A handler goes on from a failed effect by itself, as far as it caught the error. So of its effects only the one that
    the run failed of is done again, and those that were begun after it."""
    ids = [step["id"] for step in (plan or {}).get("steps", ())]
    skipped, failed = (steps.c.status == status.value for status in (StepStatus.SKIPPED, StepStatus.FAILED))
    if failed_effect is not None:
        effect = steps.alias()
        first = select(effect.c.ordinal).where(effect.c.run_id == run_id, effect.c.step_id == failed_effect)
        return and_(or_(skipped, failed), steps.c.ordinal >= first.scalar_subquery())
    return or_(and_(or_(skipped, failed), steps.c.step_id.in_(ids)), and_(skipped, STEP_PARENT.is_not(None)))


class Journal:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def steps(self, run_id: str, *, with_files: bool = False) -> list[StepRecord]:
        """The run's steps, in the order in which they are carried out; empty before there is a plan."""
        return await self._database.read(lambda connection: records_of(connection, run_id, with_files=with_files))

    async def of_turns_since(self, agent_id: str, run_id: str) -> list[StepRecord]:
        """The steps that changed files in this turn of an agent and in those after it, with their files. Empty where
        the turn is not there any more."""
        first = select(runs.c.turn).where(runs.c.id == run_id).scalar_subquery()
        query: Select[Any] = (
            select(*_RECORDED.values())
            .join(runs, runs.c.id == steps.c.run_id)
            .where(runs.c.agent_id == agent_id, runs.c.turn >= first)
            .where(or_(steps.c.files.is_not(None), steps.c.attributes.is_not(None)))
        )
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        return [_record_of(row) for row in rows]

    async def tools(self, run_id: str) -> list[dict[str, Any]]:
        """The tools of MCP servers that the run was offered when it was last claimed, as {"name", "description",
        "parameters", "risk", "repeatable"}; empty where there were none, or too large ones."""
        query = select(run_tools.c.tools).where(run_tools.c.run_id == run_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar()) or []


def records_of(connection: Connection, run_id: str, *, with_files: bool = False) -> list[StepRecord]:
    """`with_files`: also `files` and `attributes`, which may take 100 MiB and more; without, they are None."""
    columns = [column for name, column in _RECORDED.items() if with_files or name not in _FILES]
    query = select(*columns).where(steps.c.run_id == run_id).order_by(steps.c.position)
    return [_record_of(row) for row in connection.execute(query)]


def _record_of(row: Row[Any]) -> StepRecord:
    return StepRecord(**{**row._asdict(), "status": StepStatus(row.status)})
