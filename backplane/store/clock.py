"""The clock that the rows of several processes are compared by."""

from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from backplane.store.tables import UtcDateTime


def database_now(connection: Connection) -> datetime:
    """The database's clock. SQLite's is this machine's, which tells the time more finely."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.execute(select(func.clock_timestamp(type_=UtcDateTime))).scalar_one()
    return now
