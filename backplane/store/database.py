"""One database: SQLite (one machine) or PostgreSQL, behind the same two calls, `read` and `write`.

A write is a transaction. On SQLite it takes the write lock at once (BEGIN IMMEDIATE), because a read that later turns
into a write cannot be waited for there. What the driver raises when the database does not answer becomes `Unavailable`;
statements never show their parameters, which are users' texts.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from backplane.errors import InvalidInput, Unavailable

SQLITE_BUSY_SECONDS = 10
CONNECT_SECONDS = 5


def parse_url(url: str) -> URL:
    """The URL with the asynchronous driver that this project uses. Raises InvalidInput, without the URL in it."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidInput(
            "DATABASE_URL is no URL; set postgresql://… or sqlite:///path", field="DATABASE_URL"
        ) from None
    backend = parsed.drivername.split("+")[0]
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise InvalidInput("DATABASE_URL names no SQLite file; set sqlite:///path", field="DATABASE_URL")
        return parsed.set(drivername="sqlite+aiosqlite")
    raise InvalidInput(
        f"DATABASE_URL: {backend} is not supported; set postgresql://… or sqlite:///path", field="DATABASE_URL"
    )


def create_engine(url: URL, *, pool_size: int = 5, pool_overflow: int = 5) -> AsyncEngine:
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": pool_size, "max_overflow": pool_overflow}
    if url.drivername.startswith("sqlite"):
        Path(url.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
        engine = create_async_engine(url, connect_args={"timeout": SQLITE_BUSY_SECONDS}, **options)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        url, connect_args={"connect_timeout": CONNECT_SECONDS}, pool_timeout=2 * CONNECT_SECONDS, **options
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database:
    """Owns the engine."""

    def __init__(self, url: str, *, pool_size: int = 5, pool_overflow: int = 5) -> None:
        self.url = parse_url(url)
        self.is_sqlite = self.url.drivername.startswith("sqlite")
        self._engine = create_engine(self.url, pool_size=pool_size, pool_overflow=pool_overflow)
        self._writing = self._engine.execution_options(writes=True)
        self._reading = self._engine if self.is_sqlite else self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self._reading.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        with _translated():
            async with self._writing.begin() as connection:
                yield connection

    async def check(self) -> None:
        """One cheap statement; raises Unavailable."""
        async with self.read() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self._engine.dispose()


class _translated:
    """Turns what drivers raise when the database is away, full or busy into Unavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        gone = isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout | ConnectionError)
        if gone or (isinstance(error, DBAPIError) and error.connection_invalidated):
            reason = str(getattr(error, "orig", None) or error).splitlines()[0][:200]
            raise Unavailable(f"the database does not answer: {reason}", part="database") from error
