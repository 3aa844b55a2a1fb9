"""What people did, in the order in which it began. Rows are added, and say once how it ended; none is removed.

What the store does by itself (sessions, tokens) is written in the transaction that does it. What a request does is
written before it begins, so that nothing is done that is not there, and its outcome after it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from backplane.domain.audit import TARGET_CHARS, AuditEntry, AuditFilter, AuditOutcome, Deed
from backplane.store.database import Database
from backplane.store.people.tables import audit_entries


def add_entry(connection: Connection, deed: Deed, outcome: AuditOutcome = AuditOutcome.DONE) -> int:
    """The number of the entry."""
    values = {
        "at": datetime.now(UTC),
        "user_id": deed.user_id,
        "user_name": deed.user_name,
        "token_id": deed.token_id,
        "session_id": deed.session_id,
        "action": deed.action,
        "target": deed.target[:TARGET_CHARS],
        "details": dict(deed.details),
        "outcome": outcome.value,
    }
    added = connection.execute(insert(audit_entries).values(values).returning(audit_entries.c.seq))
    seq: int = added.scalar_one()
    return seq


class AuditLog:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, deed: Deed) -> int:
        """The number of the entry, of which nobody knows yet how it ends."""
        return await self._database.write(lambda connection: add_entry(connection, deed, AuditOutcome.BEGUN))

    async def end(self, seq: int, status: int, details: Mapping[str, Any]) -> None:
        """Say how it ended, once, and what was chosen."""
        begun = (audit_entries.c.seq == seq, audit_entries.c.outcome == AuditOutcome.BEGUN.value)
        values = {"outcome": AuditOutcome.of_status(status).value, "status": status, "details": dict(details)}
        statement = update(audit_entries).where(*begun).values(values)
        await self._database.write(lambda connection: connection.execute(statement))

    async def page(
        self, wanted: AuditFilter, *, after: int | None = None, before: int | None = None, limit: int = 50
    ) -> list[AuditEntry]:
        """Newest first; with `after`, the ones behind that number, oldest first."""
        seq = audit_entries.c.seq
        query = select(audit_entries).order_by(seq if after is not None else seq.desc()).limit(limit)
        if after is not None:
            query = query.where(seq > after)
        if before is not None:
            query = query.where(seq < before)
        if wanted.user_id is not None:
            query = query.where(audit_entries.c.user_id == wanted.user_id)
        if wanted.action is not None:
            query = query.where(audit_entries.c.action == wanted.action)
        return [_entry(row) for row in await self._database.read(lambda connection: connection.execute(query).all())]


def _entry(row: Row[Any]) -> AuditEntry:
    deed = Deed(row.action, row.target, row.user_id, row.user_name, row.token_id, row.session_id, row.details)
    return AuditEntry(row.seq, row.at, deed, AuditOutcome(row.outcome), row.status)
