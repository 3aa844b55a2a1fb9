"""The database itself: its tables, and the errors when it does not answer."""

import asyncio
import os
import re
import sqlite3
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, ForeignKeyConstraint, UniqueConstraint, inspect, text
from sqlalchemy.exc import DBAPIError

from backplane.domain.users import Tier, User
from backplane.errors import InvalidInput, Unavailable
from backplane.store import Store, database
from backplane.store.database import Database, parse_url
from backplane.store.migrations import migrate
from backplane.store.tables import metadata
from tests.servers import PostgresServer
from tests.submitted import new_run

ROOT = Path(__file__).parents[3]
SECRET = "hunter2-correct-horse"


# --- migrations ---


async def test_the_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, metadata))

    assert await store.database.read(differences) == []


async def test_constraints_are_named_as_the_code_names_them(store: Store) -> None:
    def names(connection: Connection) -> set[str | None]:
        inspector = inspect(connection)
        uniques = {unique["name"] for table in metadata.tables for unique in inspector.get_unique_constraints(table)}
        return uniques | {key["name"] for table in metadata.tables for key in inspector.get_foreign_keys(table)}

    named = {
        constraint.name
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, ForeignKeyConstraint | UniqueConstraint)
    }
    assert await store.database.read(names) == named


async def test_migrating_again_changes_nothing(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    await migrate(store.database)
    assert await store.runs.get(user.id, run.id) == run


async def test_a_release_that_was_rolled_back_works_on_the_newer_database(
    empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(Database(empty_database_url))
    await store.migrate()
    token, _ = await store.users.create_token("ada", Tier.FREE)
    run = await store.runs.create(new_run(token.user))
    await store.database.write(
        lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    assert await store.migrate() == "9999"
    assert await store.runs.get(token.user.id, run.id) == run
    assert "newer release" in capsys.readouterr().out
    await store.database.close()


@pytest.fixture
def without_right(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty database in which its user may make no tables, as it is from PostgreSQL 15 on."""
    name = postgres_server.create_database()
    role = f"Role {uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url(name).replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
        connection.execute(b"REVOKE CREATE ON SCHEMA public FROM public")
    yield postgres_server.url(name).replace("//postgres@", f"//{quote(role)}@")
    postgres_server.drop_database(name)
    with psycopg.connect(postgres_server.url().replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP ROLE "{role}"'.encode())


async def test_a_user_who_may_make_no_tables_is_refused_with_the_grant_that_helps(
    without_right: str, postgres_server: PostgresServer
) -> None:
    store = Store(Database(without_right))
    with pytest.raises(Unavailable) as refused:
        await store.migrate()
    found = re.search(r"GRANT .*;", refused.value.message)
    assert (found is not None, refused.value.refuses) == (True, True)
    owners = parse_url(without_right).set(username="postgres", drivername="postgresql").render_as_string()
    with psycopg.connect(owners, autocommit=True) as connection:
        connection.execute(found[0].encode() if found else b"")
    assert await store.migrate() is None
    await store.database.close()


@pytest.mark.slow
async def test_five_processes_may_migrate_at_once(empty_database_url: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from backplane.store.database import Database\n"
        "from backplane.store.migrations import migrate\n"
        "async def main():\n"
        "    database = Database(sys.argv[1])\n"
        "    sys.stdin.read()\n"
        "    await migrate(database)\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, empty_database_url, cwd=ROOT, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )
        for _ in range(5)
    ]  # fmt: skip
    said = [output.decode() for output, _ in await asyncio.gather(*(process.communicate(b"") for process in processes))]
    assert [process.returncode for process in processes] == [0] * 5, said


async def test_ten_tasks_of_one_process_may_migrate_at_once(empty_database_url: str) -> None:
    databases = [Database(empty_database_url) for _ in range(10)]
    await asyncio.gather(*(migrate(one) for one in databases))
    token, _ = await Store(databases[0]).users.create_token("ada", Tier.FREE)
    assert token.user.name == "ada"
    await asyncio.gather(*(one.close() for one in databases))


# --- when it does not answer ---

CALLS: dict[str, Callable[[Store], Awaitable[object]]] = {
    "check": lambda store: store.database.check(),
    "migrate": lambda store: migrate(store.database),
    "a token": lambda store: store.users.user_of("token"),
    "create a token": lambda store: store.users.create_token("bob", Tier.FREE),
    "a page": lambda store: store.runs.page("user"),
    "cancel": lambda store: store.runs.cancel("user", "run"),
    "take": lambda store: store.running_runs.take("run", 1),
    "events": lambda store: store.running_runs.add_events({("run", 1): []}),
    "journal": lambda store: store.journal.steps("run"),
}


async def test_a_postgres_that_is_away_is_reported_as_such_and_used_again_when_it_is_back(
    own_postgres: Callable[[], PostgresServer],
) -> None:
    server = own_postgres()
    store = Store(Database(server.url()))
    await migrate(store.database)
    server.stop()
    for call in CALLS.values():
        with pytest.raises(Unavailable) as away:
            await call(store)
        assert away.value.part == "database"
    server.start()
    await store.users.create_token("ada", Tier.FREE)
    await store.database.close()


@pytest.mark.slow
async def test_a_restart_of_postgres_between_two_calls_is_not_noticed(
    own_postgres: Callable[[], PostgresServer],
) -> None:
    server = own_postgres()
    database = Database(server.url(server.create_database()))
    try:
        await database.write(lambda connection: connection.execute(text("CREATE TABLE kept (number integer)")))
        server.stop()
        server.start()
        await database.write(lambda connection: connection.execute(text("INSERT INTO kept VALUES (1)")))
        server.stop()
        server.start()
        assert await database.read(lambda connection: connection.scalar(text("SELECT count(*) FROM kept"))) == 1
    finally:
        await database.close()


@pytest.mark.slow
async def test_a_restart_of_postgres_between_two_single_statements_is_not_noticed(
    own_postgres: Callable[[], PostgresServer],
) -> None:
    server = own_postgres()
    database = Database(server.url(server.create_database()))
    try:
        # As many at once as leave several connections behind, which all die.
        await asyncio.gather(*(database.change("SELECT pg_sleep(0.05)", {}) for _ in range(4)))
        server.stop()
        server.start()
        assert await database.change("SELECT 1 AS one", {}) == [{"one": 1}]
    finally:
        await database.close()


async def test_a_single_statement_that_is_cut_off_leaves_no_answer_to_the_next_one(
    postgres_database: str,
) -> None:
    own = Database(postgres_database, pool_size=1)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await own.change("SELECT pg_sleep(60), 1 AS one", {})
        assert await own.change("SELECT 2 AS two", {}) == [{"two": 2}]
    finally:
        await own.close()


@pytest.mark.slow
async def test_single_statements_wait_for_one_another_when_they_are_more_than_connections(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CONNECT_SECONDS", 1)
    own = Database(postgres_database, pool_size=1)
    try:
        short = [own.change("SELECT pg_sleep(0.01)::text", {}) for _ in range(5)]
        assert len(await asyncio.gather(*short)) == 5
        long = asyncio.create_task(own.change("SELECT pg_sleep(60)::text", {}))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="DATABASE_POOL_SIZE"):
            await own.change("SELECT 1", {})
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
    finally:
        await own.close()


@pytest.mark.parametrize("prepares", [True, False])
async def test_frequent_statements_are_prepared_unless_it_is_switched_off(
    postgres_database: str, prepares: bool
) -> None:
    own = Database(postgres_database, pool_size=1, prepares=prepares)
    try:
        for _ in range(10):
            await own.change("SELECT 1", {})
        [prepared] = await own.change("SELECT count(*) > 0 AS there FROM pg_prepared_statements", {})
        assert prepared == {"there": prepares}
    finally:
        await own.close()


@pytest.mark.parametrize(("size", "fits"), [(504, True), (505, False)])
async def test_a_path_that_is_too_long_for_sqlite_is_refused_with_what_to_do(
    tmp_path: Path, size: int, fits: bool
) -> None:
    folder = tmp_path
    while (left := size - len(os.fsencode(folder)) - 1) > 250:
        folder /= "x" * min(200, left - 20)
    url = f"sqlite:///{folder / ('y' * left)}"
    if not fits:
        with pytest.raises(InvalidInput, match=r"505 bytes, of which SQLite takes 504; name a shorter one"):
            Database(url)
        return
    own = Database(url)
    await own.write(lambda connection: connection.execute(text("CREATE TABLE one (two INTEGER)")))
    await own.close()


@pytest.mark.slow
async def test_a_postgres_that_goes_away_in_a_transaction_is_reported_as_such(
    own_postgres: Callable[[], PostgresServer],
) -> None:
    server = own_postgres()
    own = Database(server.url())

    def work(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        server.kill()
        connection.execute(text("SELECT 1"))

    with pytest.raises(Unavailable):
        await own.write(work)
    await own.close()


async def test_a_postgres_that_was_never_there_is_reported_without_its_password() -> None:
    own = Database(f"postgresql://agent:{SECRET}@127.0.0.1:1/agent")
    with pytest.raises(Unavailable) as away:
        await own.check()
    assert SECRET not in f"{away.value} {away.value.__cause__} {away.value.__cause__!r}"
    await own.close()


@pytest.fixture
async def locked_store(sqlite_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """Another process holds the write lock, for longer than anybody waits."""
    monkeypatch.setattr(database, "SQLITE_BUSY_SECONDS", 0.05)
    store = Store(Database(sqlite_database))
    await migrate(store.database)
    other = sqlite3.connect(tmp_path / "agent.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield store
    other.close()
    await store.database.close()


async def test_a_locked_sqlite_is_reported_as_a_database_that_does_not_answer(locked_store: Store) -> None:
    with pytest.raises(Unavailable, match="locked") as away:
        await locked_store.users.create_token("ada", Tier.FREE)
    assert away.value.part == "database"


async def test_readers_of_sqlite_do_not_wait_for_its_writer(locked_store: Store) -> None:
    assert await locked_store.users.list_tokens() == []


async def test_a_folder_for_sqlite_that_cannot_be_made_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((Unavailable, InvalidInput)):
        await Database(f"sqlite:///{tmp_path}/file/agent.db").check()


# --- what errors say ---


async def test_a_refused_statement_shows_no_prompt(store: Store, user: User) -> None:
    stranger = replace(user, id=str(uuid.uuid4()))
    with pytest.raises(DBAPIError) as refused:
        await store.runs.create(new_run(stranger, prompt=SECRET, metadata={"key": SECRET}))
    assert SECRET not in f"{refused.value} {refused.value!r} {refused.value.orig}"


async def test_an_object_that_stands_for_a_database_shows_no_password() -> None:
    own = Database(f"postgresql://agent:{SECRET}@127.0.0.1:1/agent")
    assert SECRET not in f"{own.url} {own.url!r} {own}"
    await own.close()


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://u:p@h:1/d", "postgresql+psycopg"),
        ("postgres://u:p@h:1/d", "postgresql+psycopg"),
        ("postgresql+asyncpg://u:p@h:1/d", "postgresql+psycopg"),
        ("sqlite:///a.db", "sqlite+pysqlite"),
        ("sqlite+pysqlite:////tmp/a.db", "sqlite+pysqlite"),
    ],
)
def test_a_url_gets_the_driver_that_is_installed(url: str, driver: str) -> None:
    assert parse_url(url).drivername == driver


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://u:p@a:1,b:2/d", "a,b", "1,2"),
        ("postgresql://u:p@a,b/d", "a,b", "5432,5432"),
        ("postgresql://[::1]:1,b/d?target_session_attrs=read-write", "::1,b", "1,5432"),
        ("postgresql://u:p@/d?host=a:1&host=b:2", "a,b", "1,2"),
    ],
)
def test_a_url_may_name_several_hosts(url: str, hosts: str, ports: str) -> None:
    parsed = parse_url(url)
    _, named = parsed.get_dialect()().create_connect_args(parsed)
    assert (named["host"], str(named["port"]), named["dbname"]) == (hosts, ports, "d")


@pytest.mark.parametrize(
    "url",
    [
        *(f"mysql://u:{SECRET}@h/d", f"{SECRET}", "sqlite://", "sqlite:///:memory:", ""),
        f"postgresql://u:{SECRET}@{SECRET}@h/d",
        f"postgresql://u:@{SECRET}/{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h:port/d",
        f"postgresql://u:{SECRET}@[::1/d",
        f"postgresql://u:{SECRET}@a:1,b:x/d",
        f"postgresql://u:{SECRET}@h/d?no_such_option=1",
        f"postgresql://u:{SECRET}@h/d?port=x",
        f"postgresql://u:{SECRET}\udcff@h/d",
        "sqlite:///a\0b",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidInput, match="DATABASE_URL") as refused:
        parse_url(url)
    assert refused.value.field == "DATABASE_URL"
    assert SECRET not in refused.value.message
    assert refused.value.__cause__ is None


def test_a_parameter_that_sqlite_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="DATABASE_URL"):
        Database(f"sqlite:///{tmp_path / 'a.db'}?timeout=abc")
