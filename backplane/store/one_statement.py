"""The usual writes of a run, each transaction as one statement, for PostgreSQL.

Events, a plan, steps that begin and end, the end of the run: as a transaction they are six to eight round trips, each
dearer than what the server does in it. Here they are parts of one statement, which is a transaction by itself. Its
first part finds the row and locks it; every other part works on what that one found. So where it finds nothing, nothing
is written, and the caller takes the ordinary transaction, which knows why. No part is joined with the first: on a table
without statistics PostgreSQL could plan such a join as a read of the whole table.

Rare writes (a failure, a cancel, a webhook, an amount that is still reserved) are not handled here: there is no
statement then, or it finds nothing, and the ordinary transaction follows (`store.in_transaction`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Table, TypeDecorator
from sqlalchemy.dialects.postgresql.base import PGDialect

from backplane.domain.events import Event
from backplane.domain.plans import Plan
from backplane.store.run_writes import (
    AddEvents,
    AddStep,
    ChangeRun,
    ChangeStep,
    NotifyWebhook,
    RunWrite,
    SavePlan,
    SettleAll,
)
from backplane.store.tables import runs, steps

_DIALECT = PGDialect()  # type: ignore[no-untyped-call]

_RUNNING = """
WITH running AS MATERIALIZED (
  SELECT id, user_id, attempt, status FROM runs
  WHERE id = %(run_id)s AND generation = %(generation)s AND status = 'running' AND {condition} FOR NO KEY UPDATE
)"""
# In the order of their numbers, as places rise with them.
_EVENTS = """events_added AS (
  INSERT INTO events (run_id, id, user_id, line)
  SELECT %(run_id)s, new.id, (SELECT user_id FROM {run}), new.line
  FROM unnest(%(event_ids)s::integer[], %(event_lines)s::text[]) AS new (id, line)
  WHERE EXISTS (SELECT FROM {run}) ORDER BY new.id
  ON CONFLICT (run_id, id) DO NOTHING
)"""
_NOTE = """noted AS (
  INSERT INTO run_notices (run_id, user_id, status, attempt, at)
  SELECT id, user_id, coalesce(%(noted_status)s::text, status), attempt, now() FROM running
)"""
_PLAN = """planned AS (
  UPDATE runs SET plan = %(plan)s WHERE id = %(run_id)s AND plan IS NULL AND EXISTS (SELECT FROM running) RETURNING id
)"""
# What a step of a plan has when it is added; it has no parent.
_OF_JOURNAL = ("step_id", "position", "title", "tool", "status", "tries", "started_at", "finished_at", "result")
_JOURNAL = f"""steps_added AS (
  INSERT INTO steps (run_id, {", ".join(_OF_JOURNAL)})
  SELECT %(run_id)s, new.* FROM unnest(
    %(new_step_id)s::text[], %(new_position)s::integer[], %(new_title)s::text[], %(new_tool)s::text[],
    %(new_status)s::text[], %(new_tries)s::integer[], %(new_started_at)s::timestamptz[],
    %(new_finished_at)s::timestamptz[], %(new_result)s::text[]
  ) AS new WHERE EXISTS (SELECT FROM planned)
)"""  # noqa: S608 - names of columns
_CREATE = """
WITH created AS (
  INSERT INTO runs ({columns}) VALUES ({values}) ON CONFLICT (id) DO NOTHING RETURNING id, user_id
), {events} SELECT 1 FROM created"""
_START = """
WITH started AS (
  UPDATE runs SET status = 'queued', queued_at = %(now)s
  WHERE id = %(run_id)s AND user_id = %(user_id)s AND status = 'created' AND files_expired_at IS NULL AND origin IS NULL
  RETURNING {columns}
), {events} SELECT * FROM started"""


def as_one_statement(run_id: str, generation: int, writes: Iterable[RunWrite]) -> tuple[str, dict[str, Any]] | None:
    """A statement with its values, which gives one row when the run is running in this generation. None where these
    writes cannot be one statement: one of them needs a query first, or the run's row would be changed twice."""
    events: list[Event] = []
    run: dict[str, Any] = {}
    changed: dict[str, dict[str, Any]] = {}
    plan: Plan | None = None
    journal: dict[str, dict[str, Any]] = {}
    added: dict[str, dict[str, Any]] = {}
    conditions: list[str] = []
    is_noted = False
    for write in writes:
        match write:
            case AddEvents(new):
                events += new
            case ChangeStep(step_id, columns) if step_id in added:
                added[step_id].update(columns)
            case ChangeStep(step_id, columns):
                # A statement does not see what it adds itself: a step that it adds is added as changed.
                journal.get(step_id, {}).update(columns)
                changed.setdefault(step_id, {}).update(columns)
            case AddStep(new_step):
                added[new_step.step_id] = asdict(new_step)
            case ChangeRun(columns):
                run |= columns
            case SavePlan(plan, records):
                journal = {record.step_id: asdict(record) for record in records}
            case SettleAll():
                conditions.append("NOT EXISTS (SELECT FROM reservations WHERE run_id = %(run_id)s)")
            case NotifyWebhook():
                conditions.append("webhook_url IS NULL")
                is_noted = True
            case _:
                return None
    if plan is not None and run:
        return None
    values: dict[str, Any] = {"run_id": run_id, "generation": generation}
    parts = [_RUNNING.format(condition=" AND ".join(conditions) or "true")]
    if events:
        parts.append(_EVENTS.format(run="running"))
        values |= _event_values(events)
    if plan is not None:
        parts += [_PLAN, _JOURNAL]
        values["plan"] = stored(runs.c.plan, plan.model_dump(mode="json"))
        for name in _OF_JOURNAL:
            values[f"new_{name}"] = [stored(steps.c[name], record[name]) for record in journal.values()]
    for number, record in enumerate(added.values()):
        parts.append(_add_step(f"added{number}", record, values))
    if is_noted:
        parts.append(_NOTE)
        values["noted_status"] = run.get("status")
    if run:
        parts.append(_update("run", runs, run, "id = %(run_id)s", values))
    for number, (step_id, columns) in enumerate(changed.items()):
        name = f"step{number}"
        values[name] = step_id
        parts.append(_update(name, steps, columns, f"run_id = %(run_id)s AND step_id = %({name})s", values))
    return f"{', '.join(parts)} SELECT 1 FROM running", values  # noqa: S608 - names of columns, no values


def create_run(run: Mapping[str, Any], new_events: Sequence[Event]) -> tuple[str, dict[str, Any]]:
    """`run`: Python values by column. Nothing is written when the run is there."""
    values = {name: stored(runs.c[name], value) for name, value in run.items()}
    named = ", ".join(f"%({name})s" for name in run)
    statement = _CREATE.format(columns=", ".join(run), values=named, events=_EVENTS.format(run="created"))
    return statement, {**values, "run_id": values["id"], **_event_values(new_events)}


def start_run(
    user_id: str, run_id: str, now: datetime, new_event: Event, columns: Iterable[Column[Any]]
) -> tuple[str, dict[str, Any]]:
    """created → queued. Returns these columns of the changed row, or nothing when the ordinary transaction is
    needed."""
    names = ", ".join(column.name for column in columns)
    statement = _START.format(columns=names, events=_EVENTS.format(run="started"))
    return statement, {"user_id": user_id, "run_id": run_id, "now": now, **_event_values([new_event])}


def _event_values(new: Sequence[Event]) -> dict[str, Any]:
    return {"event_ids": [event.id for event in new], "event_lines": [event.line for event in new]}


def _add_step(name: str, record: Mapping[str, Any], values: dict[str, Any]) -> str:
    """One that is there already is left as it is: the answer of this very statement was lost."""
    columns = [column for column, value in record.items() if value is not None]
    for column in columns:
        values[f"{name}_{column}"] = stored(steps.c[column], record[column])
    given = ", ".join(f"%({name}_{column})s" for column in columns)
    return f"""{name} AS (
  INSERT INTO steps (run_id, {", ".join(columns)}) SELECT %(run_id)s, {given} WHERE EXISTS (SELECT FROM running)
  ON CONFLICT (run_id, step_id) DO NOTHING
)"""  # noqa: S608 - names of columns


def _update(name: str, table: Table, changed: Mapping[str, Any], where: str, values: dict[str, Any]) -> str:
    for column, value in changed.items():
        values[f"{name}_{column}"] = stored(table.c[column], value)
    sets = ", ".join(f"{column} = %({name}_{column})s" for column in changed)
    return f"{name} AS (UPDATE {table.name} SET {sets} WHERE {where} AND EXISTS (SELECT FROM running))"  # noqa: S608 - the same


def stored(column: Column[Any], value: Any) -> Any:
    """A value as the column's type keeps it."""
    kind = column.type
    return kind.process_bind_param(value, _DIALECT) if isinstance(kind, TypeDecorator) else value
