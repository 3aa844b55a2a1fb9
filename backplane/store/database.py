"""One database: SQLite (one machine) or PostgreSQL, behind the same two calls, `read` and `write`.

Both take a function that works on a plain SQLAlchemy connection. PostgreSQL runs it on the event loop (psycopg's
asynchronous driver), SQLite in a thread: one hop a transaction, not one a statement, which is what makes it quick. On
SQLite a write takes the write lock at once (BEGIN IMMEDIATE), because a read that later turns into a write cannot be
waited for there.

What the driver raises when the database does not answer becomes `Unavailable`; statements never show their parameters,
which are users' texts.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from backplane.errors import InvalidInput, Unavailable

Result = TypeVar("Result")

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
        return parsed.set(drivername="sqlite+pysqlite")
    raise InvalidInput(
        f"DATABASE_URL: {backend} is not supported; set postgresql://… or sqlite:///path", field="DATABASE_URL"
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


class Database:
    """Owns the connections: at most `pool_size` + `pool_overflow` of them."""

    def __init__(self, url: str, *, pool_size: int = 5, pool_overflow: int = 5) -> None:
        self.url = parse_url(url)
        self.is_sqlite = self.url.drivername.startswith("sqlite")
        options = {"hide_parameters": True, "pool_size": pool_size, "max_overflow": pool_overflow}
        kind = _Sqlite if self.is_sqlite else _Postgres
        self._connections: _Sqlite | _Postgres = kind(self.url, options)

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` gives. It sees what is committed, statement by statement, and changes nothing."""
        with _translated():
            return await self._connections.read(work)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` gives, in one transaction: committed when it returns, rolled back when it raises."""
        with _translated():
            return await self._connections.write(work)

    async def check(self) -> None:
        """One cheap statement; raises Unavailable."""
        await self.read(lambda connection: connection.execute(text("SELECT 1")))

    async def close(self) -> None:
        await self._connections.close()


class _Postgres:
    def __init__(self, url: URL, options: dict[str, Any]) -> None:
        self._writing: AsyncEngine = create_async_engine(
            url, connect_args={"connect_timeout": CONNECT_SECONDS}, pool_timeout=2 * CONNECT_SECONDS, **options
        )
        self._reading = self._writing.execution_options(isolation_level="AUTOCOMMIT")

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        return await self._on_a_live_connection(self._reading, work)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        return await self._on_a_live_connection(self._writing, work)

    async def _on_a_live_connection(self, engine: AsyncEngine, work: Callable[[Connection], Result]) -> Result:
        """A pooled connection may have died with the server that it led to. Where that shows before the commit, nothing
        has happened, and the work is done once more; asking each connection beforehand would cost every call."""
        try:
            return await self._once(engine, work)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return await self._once(engine, work)

    async def _once(self, engine: AsyncEngine, work: Callable[[Connection], Result]) -> Result:
        async with engine.connect() as connection:
            result = await connection.run_sync(work)
            try:
                await connection.commit()
            except DBAPIError as error:
                # It may have happened: whoever asked for it knows whether it may be done again.
                raise Unavailable(
                    f"the database left in the middle of a commit: {error.orig}", part="database"
                ) from error
            return result

    async def close(self) -> None:
        await self._writing.dispose()


class _Sqlite:
    def __init__(self, url: URL, options: dict[str, Any]) -> None:
        folder = Path(url.database or "").absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"DATABASE_URL: the folder {folder} cannot be made: {error.strerror}; name another file"
            raise InvalidInput(message, field="DATABASE_URL") from error
        arguments = {"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
        self._engine: Engine = create_engine(url, connect_args=arguments, **options)
        event.listen(self._engine, "connect", _prepare_sqlite)
        self._threads = ThreadPoolExecutor(options["pool_size"], thread_name_prefix="sqlite")

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        def in_thread() -> Result:
            with self._engine.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._threads, in_thread)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        def in_thread() -> Result:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                result = work(connection)
                connection.commit()
                return result

        return await asyncio.get_running_loop().run_in_executor(self._threads, in_thread)

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()


_NO_TABLE = re.compile(r"no such table|relation \"\w+\" does not exist")


class _translated:
    """Turns what drivers raise when the database is away, full or busy into Unavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, OperationalError | ProgrammingError) and _NO_TABLE.search(str(error.orig)):
            message = "the database has no tables yet: an API or a worker makes them at its start, or agentctl migrate"
            raise Unavailable(message, part="database") from error
        gone = isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout | ConnectionError)
        if gone or (isinstance(error, DBAPIError) and error.connection_invalidated):
            reason = str(getattr(error, "orig", None) or error).splitlines()[0][:200]
            raise Unavailable(f"the database does not answer: {reason}", part="database") from error
