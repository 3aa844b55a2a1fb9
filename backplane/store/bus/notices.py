"""Notes that a run came into a state of which the event bus has an event, in the transaction that brings it there.

It is one row that touches nothing else. A controller makes the event of it (`store.bus.events`), since an event locks
the row of its user, and all runs of a user would end one after another.
"""

from datetime import UTC, datetime

from sqlalchemy import Connection, bindparam, text

from backplane.store.tables import UtcDateTime

_NOTE = text(
    "INSERT INTO run_notices (run_id, user_id, status, attempt, at) "
    "SELECT id, user_id, status, attempt, :now FROM runs WHERE id = :of_run"
).bindparams(bindparam("now", type_=UtcDateTime))


def note_run(connection: Connection, run_id: str) -> None:
    """Note the state that the run is in now."""
    connection.execute(_NOTE, {"of_run": run_id, "now": datetime.now(UTC)})
