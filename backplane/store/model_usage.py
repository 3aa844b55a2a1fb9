"""What models took, added up by day while the calls are written down.

A row is of one user, day, model, agent, pool and role. It grows in the transaction that writes how a try ended, so it
agrees with the calls and with the accounts (`store.reservations`); what is written again adds nothing. Rows outlive
the runs, as the entries of accounts do. A question costs what its rows cost, however many calls they stand for.

A transaction adds after all else that it locks, in the order of the rows' keys, so that no two wait for each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Date,
    Index,
    Row,
    String,
    Table,
    bindparam,
    func,
    literal,
    select,
    text,
    true,
)

from backplane.domain.model_calls import CallKey, CallStatus, CallTotals
from backplane.domain.model_usage import ModelTotals, UsageFilter, UsageGroup, UsageKey, UsageReport
from backplane.store.agents.tables import agents
from backplane.store.database import Database
from backplane.store.model_calls import IS_CALL, named_call
from backplane.store.tables import metadata, model_calls, users

model_usage = Table(
    "model_usage",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("day", Date, primary_key=True),
    # `{server}/{model}`, as people see it.
    Column("model", String(265), primary_key=True),
    Column("agent", String(64), primary_key=True),
    Column("pool", String(64), primary_key=True),
    Column("role", String(64), primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("micro_usd", BigInteger, nullable=False),
    Index("ix_model_usage_day", "day"),
)

_SUMS = [field.name for field in fields(ModelTotals)]
_COLUMNS = {
    UsageKey.USER: model_usage.c.user_id,
    UsageKey.AGENT: model_usage.c.agent,
    UsageKey.MODEL: model_usage.c.model,
    UsageKey.DAY: model_usage.c.day,
    UsageKey.ROLE: model_usage.c.role,
    UsageKey.POOL: model_usage.c.pool,
}
_BEFORE = select(
    model_calls.c.server,
    model_calls.c.model,
    model_calls.c.status,
    model_calls.c.input_tokens,
    model_calls.c.output_tokens,
    model_calls.c.micro_usd,
).where(IS_CALL)
_ADD = text(
    "INSERT INTO model_usage "
    "(user_id, day, model, agent, pool, role, calls, unpriced, input_tokens, output_tokens, micro_usd) "
    "SELECT r.user_id, :day, :model, r.agent, coalesce(a.pool, ''), coalesce(p.role, ''), "
    ":calls, :unpriced, :input_tokens, :output_tokens, :micro_usd "
    "FROM runs r LEFT JOIN agents a ON a.id = r.agent_id LEFT JOIN agent_pools p ON p.name = a.pool "
    "WHERE r.id = :of_run "
    "ON CONFLICT (user_id, day, model, agent, pool, role) DO UPDATE SET "
    + ", ".join(f"{name} = model_usage.{name} + excluded.{name}" for name in _SUMS)
).bindparams(bindparam("day", type_=Date()))

ALL = UsageFilter()
_LIVES = "agent-"
"""How the names of agents that live begin (`Agent.memory_name`)."""


@dataclass(frozen=True, slots=True)
class TakenNow:
    """What a try of a call took. `model`: `{server}/{model}`."""

    model: str
    totals: ModelTotals


def taken_now(
    connection: Connection, run_id: str, key: CallKey, status: CallStatus, totals: CallTotals
) -> TakenNow | None:
    """What is to be added for a call that is about to be written down so; None: nothing. `totals`: of all its tries."""
    before = connection.execute(_BEFORE, named_call(run_id, key)).one_or_none()
    if before is None:
        return None
    # A price that is not known makes the sum unknown. What was known of it has been added.
    known = totals.micro_usd is not None and (before.micro_usd is not None or before.input_tokens is None)
    ended = before.status == CallStatus.STARTED and status is not CallStatus.STARTED
    added = ModelTotals(
        calls=int(ended),
        unpriced=int(ended and totals.micro_usd is None),
        input_tokens=totals.input_tokens - (before.input_tokens or 0),
        output_tokens=totals.output_tokens - (before.output_tokens or 0),
        micro_usd=(totals.micro_usd or 0) - (before.micro_usd or 0) if known else 0,
    )
    return TakenNow(f"{before.server}/{before.model}", added) if added != ModelTotals() else None


def add_usage(connection: Connection, run_id: str, taken: Iterable[TakenNow]) -> None:
    """Add what calls of one run took. It is the last that a transaction locks."""
    day = datetime.now(UTC).date()
    for one in sorted(taken, key=lambda one: one.model):
        connection.execute(_ADD, {"of_run": run_id, "day": day, "model": one.model, **asdict(one.totals)})


class ModelUsage:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(
        self, by: Sequence[UsageKey], of: UsageFilter = ALL, *, offset: int = 0, limit: int = 50
    ) -> UsageReport:
        """The groups, without the first `offset` of them: days in their order, and the highest cost first. It sees one
        moment."""
        columns = [_COLUMNS[key].label(f"key_{key}") for key in by]
        sums = [func.coalesce(func.sum(model_usage.c[name]), 0).label(name) for name in _SUMS]
        which = [
            model_usage.c.user_id == of.user_id if of.user_id is not None else true(),
            model_usage.c.day >= of.first if of.first is not None else true(),
            model_usage.c.day <= of.last if of.last is not None else true(),
        ]
        groups = select(*columns, *sums).where(*which).group_by(*columns).cte("groups")
        all_sums = [func.coalesce(func.sum(groups.c[name]), 0).label(f"all_{name}") for name in _SUMS]
        whole = select(*all_sums).cte("whole")
        there = literal(1).label("is_there")
        page = select(groups, there).order_by(*_order(groups, by)).offset(offset).limit(limit).cte("page")
        # One row at least: the totals are there also where no group is.
        query = select(page, whole).select_from(whole.outerjoin(page, true())).order_by(*_order(page, by))
        rows = await self._database.read(lambda connection: connection.execute(query).all())
        found = [
            UsageGroup({key: row._mapping[f"key_{key}"] for key in by}, _totals(row)) for row in rows if row.is_there
        ]
        return UsageReport(found, _totals(rows[0], "all_"))

    async def names(self, groups: Iterable[UsageGroup]) -> dict[str, str]:
        """The names of users by their ids, and of agents that live by `agent-{id}`. Those that are gone are left
        out."""
        keys = [group.key for group in groups]
        of_users = {str(key[UsageKey.USER]) for key in keys if UsageKey.USER in key}
        named = {str(key[UsageKey.AGENT]) for key in keys if UsageKey.AGENT in key}
        of_agents = {name.removeprefix(_LIVES) for name in named if name.startswith(_LIVES)}

        def read(connection: Connection) -> dict[str, str]:
            found = dict[str, str]()
            for table, ids, prefix in ((users, of_users, ""), (agents, of_agents, _LIVES)):
                query = select(table.c.id, table.c.name).where(table.c.id.in_(ids))
                found |= {prefix + row.id: row.name for row in connection.execute(query)} if ids else {}
            return found

        return await self._database.read(read) if of_users or of_agents else {}


def _order(groups: CTE, by: Sequence[UsageKey]) -> list[ColumnElement[Any]]:
    days = [groups.c[f"key_{UsageKey.DAY}"]] if UsageKey.DAY in by else []
    cost = [groups.c[name].desc() for name in ("micro_usd", "input_tokens")]
    return [*days, *cost, *(groups.c[f"key_{key}"] for key in by)]


def _totals(row: Row[Any], prefix: str = "") -> ModelTotals:
    return ModelTotals(**{name: int(row._mapping[prefix + name]) for name in _SUMS})
