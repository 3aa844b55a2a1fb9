"""One database: SQLite (one machine) or PostgreSQL, behind the same two calls, `read` and `write`.

Both take a function that works on a plain SQLAlchemy connection. PostgreSQL runs it on the event loop (psycopg's
asynchronous driver), SQLite in a thread: one hop for each transaction and not for each statement, which makes it quick.
On SQLite a write takes the write lock at once (BEGIN IMMEDIATE), because a read that later turns into a write cannot be
waited for there.

On PostgreSQL each statement is a round trip, and a round trip costs the client more than the server. So what every run
does has a shorter way: `select` sends one query past SQLAlchemy's own machinery, and `change` one statement that is a
whole transaction. SQLite has no such statements (and no round trips): there the same is done by `write`.

What a role, the database or the environment sets for sessions (PGCLIENTENCODING, ALTER ROLE … SET DateStyle) may not
change what comes back: each new connection is brought to the settings that this code reads and writes by. The server
reports them when a connection opens, so that costs a statement only where one of them differs.

A proxy that shares server connections by transaction (PgBouncer) breaks prepared statements, and not always with an
error: two clients prepare different statements under one name, and one may run the other's. So each new connection asks
once whether it leads to the server itself, unless the operator has decided about prepared statements.

What the driver raises when the database does not answer becomes `Unavailable`; statements never show their parameters,
which are users' texts.
"""

import asyncio
import os
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import psycopg
import psycopg.conninfo
from psycopg.rows import dict_row
from sqlalchemy import ColumnElement, Engine, Select, create_engine, event, text
from sqlalchemy.engine import URL, Connection, Dialect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InternalError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from structlog import get_logger

from backplane.errors import InvalidInput, NoTables, Unavailable

Result = TypeVar("Result")
Values = Mapping[str, Any]

SQLITE_BUSY_SECONDS = 10
SQLITE_PAUSE_SECONDS = 0.01
SQLITE_PATH_BYTES = 504
"""SQLite's own limit (512 in its file layer for Unix), less the longest ending of the files that it puts beside."""
CONNECT_SECONDS = 5
SESSION_SETTINGS = {"DateStyle": "ISO", "IntervalStyle": "postgres", "standard_conforming_strings": "on"}
"""Settings of a PostgreSQL session: the beginnings of values that the driver can read. Any TimeZone will do, as times
carry their offset; `client_encoding` is part of the connection's parameters, because PgBouncer takes it there and no
`options`."""


log = get_logger()

_SEVERAL_HOSTS = re.compile(r"([a-z+]+://(?:[^@/?#]*@)?)([^@/?#]*,[^@/?#]*)(/[^?#]*)?(?:\?(.*))?", re.DOTALL)


def parse_url(url: str) -> URL:
    """The URL with the asynchronous driver that this project uses. Raises InvalidInput, without the URL in it: what is
    wrong with it may be a password that is not escaped."""
    try:
        url.encode()
        parsed = make_url(_several_hosts(url))
    except (ArgumentError, ValueError):
        raise _wrong_url(
            "is no URL; set postgresql://user:password@host:port/name, in which @, /, : and % of the password stand as "
            "%40, %2F, %3A and %25, or sqlite:///path"
        ) from None
    backend = parsed.drivername.split("+")[0]
    if backend in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        _check_postgres(parsed)
        return parsed
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or "\0" in parsed.database:
            raise _wrong_url("names no SQLite file; set sqlite:///path")
        return parsed.set(drivername="sqlite+pysqlite")
    raise _wrong_url(f"{backend} is not supported; set postgresql://… or sqlite:///path")


def _wrong_url(reason: str) -> InvalidInput:
    return InvalidInput(f"DATABASE_URL: {reason}", field="DATABASE_URL")


def _several_hosts(url: str) -> str:
    """`//a:1,b:2/name`, which libpq takes, as `///name?host=a,b&port=1,2`, which SQLAlchemy takes too."""
    found = _SEVERAL_HOSTS.fullmatch(url)
    if found is None:
        return url
    before, hosts, path, query = found.groups(default="")
    named = [re.fullmatch(r"\[(.*)\](?::(.*))?|([^:]*)(?::(.*))?", host) for host in hosts.split(",")]
    parts = [(each[1] or each[3] or "", each[2] or each[4] or "5432") for each in named if each]
    if not all(port.isdecimal() for _, port in parts):
        raise ValueError("a port")
    listed = urlencode({"host": ",".join(host for host, _ in parts), "port": ",".join(port for _, port in parts)})
    return f"{before}{path or '/'}?{query + '&' if query else ''}{listed}"


def _check_postgres(url: URL) -> None:
    if any("@" in part for part in (url.host or "", url.database or "")):
        raise _wrong_url("there is more than one @ in it; one that belongs to the password is written as %40")
    try:
        _, named = url.get_dialect()().create_connect_args(url)
        psycopg.conninfo.make_conninfo(**named)
    except (ArgumentError, psycopg.Error, ValueError) as error:
        raise _wrong_url(f"{error}") from None


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    _write_ahead(cursor)
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """The busy time-out does not hold for this one on a file that several open for the first time."""
    deadline = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(SQLITE_PAUSE_SECONDS)


class Columns:
    """What turns a row of psycopg's into Python values, as SQLAlchemy would."""

    def __init__(self, columns: Iterable[ColumnElement[Any]]) -> None:
        self._types = {str(column.key): column.type for column in columns}
        self._readers: dict[str, Callable[[Any], Any]] | None = None

    def read(self, row: dict[str, Any], dialect: Dialect) -> dict[str, Any]:
        if self._readers is None:
            readers = {
                name: type.dialect_impl(dialect).result_processor(dialect, None) for name, type in self._types.items()
            }
            self._readers = {name: reader for name, reader in readers.items() if reader is not None}
        for name, reader in self._readers.items():
            row[name] = reader(row[name])
        return row


class Query:
    """A query that is compiled once. Its values are given by the names of its `bindparam`s."""

    def __init__(self, query: Select[Any]) -> None:
        self.query = query
        self.columns = Columns(query.selected_columns)
        self._compiled: tuple[str, Values] | None = None

    def compiled(self, dialect: Dialect) -> tuple[str, Values]:
        """Its text for psycopg, and the values that stand in the query itself."""
        if self._compiled is None:
            compiled = self.query.compile(dialect=dialect)
            self._compiled = str(compiled), compiled.params
        return self._compiled


class Database:
    """Owns the connections: at most `pool_size` + `pool_overflow` for transactions, and (PostgreSQL) `pool_size` for
    single statements. `prepares`: whether PostgreSQL is asked to keep frequent statements prepared; None: it is, on
    connections that lead to it without a proxy."""

    def __init__(self, url: str, *, pool_size: int = 5, pool_overflow: int = 5, prepares: bool | None = None) -> None:
        self.url = parse_url(url)
        self.is_sqlite = self.url.drivername.startswith("sqlite")
        options = {"hide_parameters": True, "pool_size": pool_size, "max_overflow": pool_overflow}
        self._postgres = None if self.is_sqlite else _Postgres(self.url, options, prepares=prepares)
        self._connections = self._postgres or _Sqlite(self.url, options)

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """The result of `work`, which sees what is committed, statement by statement, and changes nothing."""
        with _translated():
            return await self._connections.read(work)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """The result of `work`, in one transaction: committed when it returns, rolled back when it raises."""
        with _translated():
            return await self._connections.write(work)

    async def select(self, query: Query, values: Values) -> list[dict[str, Any]]:
        """The rows of a query that every run makes, in the shortest way."""
        with _translated():
            return await self._connections.select(query, values)

    async def change(self, statement: str, values: Values, columns: Columns | None = None) -> list[dict[str, Any]]:
        """One statement that is a transaction, and the rows that it returns. PostgreSQL only.

        `statement` is psycopg's, with %(name)s. It may be carried out again when its answer was lost, so it must be one
        that does nothing then.
        """
        if self._postgres is None:
            raise TypeError("SQLite has no statement that could do this")
        with _translated():
            return await self._postgres.rows(statement, values, columns)

    async def check(self) -> None:
        """One cheap statement; raises Unavailable."""
        await self.read(lambda connection: connection.execute(text("SELECT 1")))

    async def close(self) -> None:
        await self._connections.close()


class _Postgres:
    """Transactions go through SQLAlchemy's pool, single statements over connections of their own (`_Singles`)."""

    def __init__(self, url: URL, options: dict[str, Any], *, prepares: bool | None) -> None:
        self._parameters: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "client_encoding": "utf8"}
        self._looks_for_proxy = prepares is None
        if prepares is False:
            self._parameters["prepare_threshold"] = None
        self._engine: AsyncEngine = create_async_engine(
            url,
            async_creator=self._connect,
            pool_timeout=2 * CONNECT_SECONDS,
            isolation_level="AUTOCOMMIT",
            **options,
        )
        self._dialect = self._engine.dialect
        _, named = self._dialect.create_connect_args(url)
        self._parameters = {**named, **self._parameters}
        self._singles = _Singles(options["pool_size"], self._connect)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        """A new connection, for transactions and for single statements. Raises InvalidInput for a database that cannot
        hold every text."""
        looks_for_proxy = self._looks_for_proxy  # as it is now: another connection may find one meanwhile
        connection = await psycopg.AsyncConnection.connect(autocommit=True, **self._parameters)
        try:
            await _prepare_postgres(connection)
            if looks_for_proxy and await _is_behind_proxy(connection):
                connection.prepare_threshold = None
                self._prepare_no_more()
        except BaseException:
            await connection.close()
            raise
        return connection

    def _prepare_no_more(self) -> None:
        if self._looks_for_proxy:
            self._looks_for_proxy = False
            self._parameters["prepare_threshold"] = None
            log.warning(
                "A proxy stands before PostgreSQL, so statements are not prepared. Set "
                "DATABASE_PREPARED_STATEMENTS=false; or true, where the proxy keeps sessions or prepared statements."
            )

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        async def once() -> Result:
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)

        return await _on_a_live_connection(once)

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        def begin_and_work(connection: Connection) -> Result:
            connection.exec_driver_sql("BEGIN")
            return work(connection)

        async def once() -> Result:
            async with self._engine.connect() as connection:
                result = await connection.run_sync(begin_and_work)
                try:
                    await connection.commit()
                except DBAPIError as error:
                    # It may have happened: whoever asked for it knows whether it may be done again.
                    raise Unavailable(
                        f"the database left in the middle of a commit: {error.orig}", part="database"
                    ) from error
                return result

        return await _on_a_live_connection(once)

    async def select(self, query: Query, values: Values) -> list[dict[str, Any]]:
        statement, constants = query.compiled(self._dialect)
        return await self.rows(statement, {**constants, **values}, query.columns)

    async def rows(self, statement: str, values: Values, columns: Columns | None) -> list[dict[str, Any]]:
        found = await _on_a_live_connection(lambda: self._singles.rows(statement, values))
        return [columns.read(row, self._dialect) for row in found] if columns else found

    async def close(self) -> None:
        await self._singles.close()
        await self._engine.dispose()


async def _on_a_live_connection(once: Callable[[], Awaitable[Result]]) -> Result:
    """A kept connection may have died with the server that it led to. Where that shows before the commit, nothing has
    happened, and the work is done once more; asking each connection beforehand would cost every call."""
    try:
        return await once()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    return await once()


async def _prepare_postgres(connection: psycopg.AsyncConnection[Any]) -> None:
    """Bring the session to what this code expects. Raises InvalidInput for a database that is not UTF-8."""
    reported = connection.info.parameter_status
    encoding = reported("server_encoding")
    if encoding not in (None, "UTF8"):
        raise InvalidInput(
            f"DATABASE_URL names a database in the encoding {encoding}, which cannot hold every text that a run may "
            "say; create one with CREATE DATABASE name ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0, and name that.",
            field="DATABASE_URL",
        )
    for setting, value in SESSION_SETTINGS.items():
        if not (reported(setting) or value).startswith(value):
            await connection.execute(f"SET {setting} = '{value}'".encode())


async def _is_behind_proxy(connection: psycopg.AsyncConnection[Any]) -> bool:
    """The server names its process when a connection opens; what a proxy names is its own."""
    cursor = await connection.execute(b"SELECT pg_backend_pid()")
    return await cursor.fetchone() != (connection.info.backend_pid,)


class _Singles:
    """psycopg's own connections for single statements that commit by themselves, at most `size`."""

    def __init__(self, size: int, connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]) -> None:
        self._connect = connect
        self._idle: list[psycopg.AsyncConnection[Any]] = []
        self._room = asyncio.Semaphore(size)

    async def rows(self, statement: str, values: Values) -> list[dict[str, Any]]:
        """Raises what SQLAlchemy would raise."""
        if self._room.locked():
            await self._wait_for_room()
        async with self._room:
            try:
                # The connection that was used last is used first: it has the statements prepared and is warm in the
                # server.
                connection = self._idle.pop() if self._idle else await self._connect()
            except psycopg.Error as error:
                raise _as_sqlalchemys(error, lost=False) from error
            try:
                cursor = connection.cursor(row_factory=dict_row)
                await cursor.execute(statement.encode(), values)
                found = await cursor.fetchall() if cursor.rownumber is not None else []
            except psycopg.Error as error:
                lost = connection.closed
                if lost:
                    await self.close()  # the others lead to the same server
                else:
                    self._idle.append(connection)
                raise _as_sqlalchemys(error, lost=lost) from error
            except BaseException:
                # It was cut off in the middle of a statement: nobody knows what it would answer next.
                await connection.close()
                raise
            self._idle.append(connection)
            return found

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                async with self._room:
                    return
        except TimeoutError:
            message = "no connection to the database became free; is it slow, or DATABASE_POOL_SIZE too small?"
            raise Unavailable(message, part="database") from None

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def _as_sqlalchemys(error: psycopg.Error, *, lost: bool) -> BaseException:
    return DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=lost)


class _Sqlite:
    def __init__(self, url: URL, options: dict[str, Any]) -> None:
        file = Path(url.database or "").absolute()
        folder = file.parent
        if len(os.fsencode(file)) > SQLITE_PATH_BYTES:
            raise _wrong_url(
                f"the path of the file has {len(os.fsencode(file))} bytes, of which SQLite takes {SQLITE_PATH_BYTES}; "
                "name a shorter one, or a PostgreSQL"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"DATABASE_URL: the folder {folder} cannot be made: {error.strerror}; name another file"
            raise InvalidInput(message, field="DATABASE_URL") from error
        arguments = {"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
        try:
            self._engine: Engine = create_engine(url, connect_args=arguments, **options)
        except (ArgumentError, TypeError, ValueError):
            raise _wrong_url("what stands behind ? cannot be used; set sqlite:///path alone") from None
        event.listen(self._engine, "connect", _prepare_sqlite)
        self._threads = ThreadPoolExecutor(options["pool_size"], thread_name_prefix="sqlite")

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        def in_thread() -> Result:
            with self._engine.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._threads, in_thread)

    async def select(self, query: Query, values: Values) -> list[dict[str, Any]]:
        return await self.read(
            lambda connection: [dict(row) for row in connection.execute(query.query, values).mappings()]
        )

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


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_TABLE = re.compile(r"no such table")
# Server messages come in the server's language, these do not.
_UNDEFINED_TABLE, _NOT_ALLOWED = "42P01", "42501"
_NO_SUCH_STATEMENT, _STATEMENT_EXISTS = "26000", "42P05"
_OPTIONS_REFUSED = "unsupported startup parameter: options"  # PgBouncer's own words, which are in no other language


class _translated:
    """Turns what drivers raise when the database is away, full, busy or not made ready into Unavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        cause = getattr(error, "orig", error)
        if isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            message = (
                f"the file of DATABASE_URL is no sound SQLite database ({cause}) and is left as it is. Stop all, "
                "put a backup in its place (or what `sqlite3 FILE .recover` gives), or name another file."
            )
            raise Unavailable(message, part="database") from error
        if isinstance(error, OperationalError | ProgrammingError):
            state = getattr(error.orig, "sqlstate", None)
            if state == _UNDEFINED_TABLE or _NO_TABLE.search(str(error.orig)):
                message = "the database has no tables yet: an API or a worker makes them at its start"
                raise NoTables(message, part="database") from error
            if state == _NOT_ALLOWED:
                reason = str(error.orig).splitlines()[0][:200]
                message = (
                    f"the database does not let its user do this ({reason}): make that user the owner of all tables"
                )
                raise Unavailable(message, part="database") from error
            if state in (_NO_SUCH_STATEMENT, _STATEMENT_EXISTS):
                message = (
                    "a proxy before PostgreSQL shares connections between clients, which breaks prepared statements: "
                    "set DATABASE_PREPARED_STATEMENTS=false"
                )
                raise Unavailable(message, part="database") from error
            if _OPTIONS_REFUSED in str(error.orig):
                message = (
                    "PgBouncer refuses `options`: take it out of DATABASE_URL and unset PGOPTIONS, or set "
                    "ignore_startup_parameters = options in PgBouncer; what it sets belongs into ALTER ROLE … SET"
                )
                raise Unavailable(message, part="database") from error
        gone = isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout | ConnectionError)
        if gone or (isinstance(error, DBAPIError) and error.connection_invalidated):
            reason = str(getattr(error, "orig", None) or error).splitlines()[0][:200]
            raise Unavailable(f"the database does not answer: {reason}", part="database") from error
