"""The row a user that orders the user's events, and how events are found by their types.

Whoever stores events, and whoever begins to wait for one, locks the user's row first (`store.bus.events` says why).
"""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select, text, true

from backplane.store.bus.tables import bus_events, bus_logs

_LOCK = text(
    "INSERT INTO bus_logs (user_id, last_cursor, events, bytes) VALUES (:user_id, 0, 0, 0) "
    "ON CONFLICT (user_id) DO UPDATE SET last_cursor = bus_logs.last_cursor RETURNING last_cursor, events, bytes"
)


def lock_log(connection: Connection, user_id: str) -> Row[Any]:
    """The user's row, made when there is none, which nobody else changes until the transaction ends."""
    return connection.execute(_LOCK, {"user_id": user_id}).one()


def last_cursor(connection: Connection, user_id: str) -> int:
    found: int | None = connection.scalar(select(bus_logs.c.last_cursor).where(bus_logs.c.user_id == user_id))
    return found or 0


def of_type(pattern: str) -> ColumnElement[bool]:
    """That an event is of this pattern. Not LIKE, which on SQLite takes small letters and capitals for the same."""
    if pattern == "*":
        return true()
    if pattern.endswith(".*"):
        beginning = pattern[:-1]
        return func.substr(bus_events.c.type, 1, len(beginning)) == beginning
    return bus_events.c.type == pattern
