"""Enters a claim in its run's row: from then on writes of older generations are refused."""

from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, func, select, update

from backplane.domain.runs import Taken
from backplane.store.database import Database
from backplane.store.events import LAST_EVENT
from backplane.store.runs import RUN, RUN_COLUMNS, run_from
from backplane.store.tables import accounts, events, run_secrets, runs, users

# Built once: to build a statement takes longer than to run it.
_ITS_TIER = select(users.c.tier).where(users.c.id == runs.c.user_id).scalar_subquery()
_RUN_TO_TAKE = select(
    *RUN_COLUMNS,
    _ITS_TIER.label("tier"),
    select(accounts.c.id)
    .where(accounts.c.owner.in_(["run:" + runs.c.id, "user:" + runs.c.user_id, "tier:" + _ITS_TIER]))
    .exists()
    .label("has_accounts"),
    select(run_secrets.c.run_id).where(run_secrets.c.run_id == runs.c.id).exists().label("knows_secrets"),
    select(func.max(events.c.id)).where(events.c.run_id == runs.c.id).scalar_subquery().label("last_event_id"),
).where(runs.c.id == bindparam("of_run"))
_UPDATE_RUN = update(runs).where(runs.c.id == bindparam("of_run"))
_TAKE = f"""
WITH old AS MATERIALIZED (SELECT status, worker_id FROM runs WHERE id = %(run_id)s FOR UPDATE)
UPDATE runs SET status = 'running', generation = %(generation)s, started_at = coalesce(started_at, %(now)s),
  worker_id = %(worker_id)s
WHERE id = %(run_id)s AND generation < %(generation)s AND status IN ('queued', 'running') AND EXISTS (SELECT FROM old)
RETURNING {", ".join(column.name for column in RUN_COLUMNS)}, (SELECT status FROM old) AS was,
  (SELECT worker_id FROM old) AS old_worker,
  (SELECT tier FROM users WHERE users.id = runs.user_id) AS tier,
  EXISTS (SELECT FROM accounts WHERE owner IN ('run:' || runs.id, 'user:' || runs.user_id,
    'tier:' || (SELECT tier FROM users WHERE users.id = runs.user_id))) AS has_accounts,
  EXISTS (SELECT FROM run_secrets WHERE run_secrets.run_id = runs.id) AS knows_secrets"""  # noqa: S608 - columns


async def take_in_transaction(database: Database, run_id: str, generation: int, worker_id: str | None) -> Taken | None:
    """Enter the claim in an ordinary transaction. None when the run may not run (any more)."""

    def write(connection: Connection) -> Taken | None:
        row = connection.execute(_RUN_TO_TAKE, {"of_run": run_id}).mappings().one_or_none()
        if row is None or row["generation"] >= generation or row["status"] not in ("queued", "running"):
            return None
        found = dict(row)
        tier, bound, secret, last = (
            found.pop(name) for name in ("tier", "has_accounts", "knows_secrets", "last_event_id")
        )
        started = row["started_at"] or datetime.now(UTC)
        values = {
            "status": "running",
            "generation": generation,
            "started_at": started,
            "worker_id": worker_id,
        }
        connection.execute(_UPDATE_RUN, {"of_run": run_id, **values})
        is_lost = row["status"] == "running"
        lost_worker = row["worker_id"] if is_lost else None
        return Taken(run_from({**found, **values}), last or 0, is_lost, tier, bound, secret, lost_worker)

    return await database.write(write)


async def take_at_once(database: Database, run_id: str, generation: int, worker_id: str | None) -> Taken | None:
    """The same as one statement of PostgreSQL."""
    values = {"run_id": run_id, "generation": generation, "worker_id": worker_id, "now": datetime.now(UTC)}
    rows = await database.change(_TAKE, values, RUN)
    if not rows:
        return None
    # It is read after the row is changed: no older worker can write any more.
    was, old_worker, tier, bound, secret = (
        rows[0].pop(name) for name in ("was", "old_worker", "tier", "has_accounts", "knows_secrets")
    )
    [last] = await database.select(LAST_EVENT, {"of_run": run_id})
    is_lost = was == "running"
    lost_worker = old_worker if is_lost else None
    return Taken(run_from(rows[0]), last["id"] or 0, is_lost, tier, bound, secret, lost_worker)
