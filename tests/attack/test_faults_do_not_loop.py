"""A fault that lasts ends what it hits, with an error that says what to do; it is never tried again without end.

The database: what the environment or a role sets, an encoding that cannot hold texts, characters that it refuses. The
store of the workspaces: one that answers, and refuses.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest

from backplane.errors import InvalidInput
from backplane.events import EventType, encode
from backplane.store import Store
from backplane.store.database import Database
from backplane.users import Tier, User
from tests.servers import PostgresServer
from tests.submitted import new_run

HELLO = "你好 \\ '' \" \n 🙂"


# --- what the environment or a role of PostgreSQL sets ---

SESSION_SETTINGS = {
    "client_encoding": "LATIN1",
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
}
ENVIRONMENT = {
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Kathmandu",
    "PGOPTIONS": "-c client_encoding=LATIN1 -c DateStyle=SQL,DMY",
}


@pytest.fixture
def role_that_sets(postgres_server: PostgresServer, postgres_database: str) -> Iterator[Callable[[str, str], str]]:
    """`role_that_sets("DateStyle", "German")`: URL of the database for a role with such a setting."""
    name = f"role_{uuid4().hex}"
    with psycopg.connect(postgres_server.url().replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN SUPERUSER".encode())

        def make(setting: str, value: str) -> str:
            admin.execute(f"ALTER ROLE {name} SET {setting} TO '{value}'".encode())
            return postgres_database.replace("postgres@", f"{name}@")

        yield make
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize("setting", SESSION_SETTINGS)
async def test_what_a_role_sets_for_its_sessions_changes_nothing_that_is_kept(
    role_that_sets: Callable[[str, str], str], setting: str
) -> None:
    await keeps_everything(role_that_sets(setting, SESSION_SETTINGS[setting]))


@pytest.mark.parametrize("variable", ENVIRONMENT)
async def test_what_the_environment_sets_for_sessions_changes_nothing_that_is_kept(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, ENVIRONMENT[variable])
    await keeps_everything(postgres_database)


@pytest.mark.parametrize("query", ["client_encoding=latin1", "options=-c%20DateStyle%3DGerman"])
async def test_what_the_url_sets_for_sessions_changes_nothing_that_is_kept(postgres_database: str, query: str) -> None:
    await keeps_everything(f"{postgres_database}?{query}")


async def keeps_everything(url: str) -> None:
    """Texts, times and events come back as they went in, by transactions and by single statements."""
    database = Database(url)
    store = Store(database)
    try:
        token, _ = await store.users.create_token("ada", Tier.STANDARD)
        before = datetime.now(UTC)
        run = await store.runs.create(new_run(token.user, prompt=HELLO, metadata={"said": HELLO}))
        assert await store.runs.get(token.user.id, run.id) == run
        assert (run.prompt, run.metadata) == (HELLO, {"said": HELLO})
        assert abs((run.created_at - before).total_seconds()) < 60
        await store.runs.start(token.user.id, run.id)
        taken = await store.held.take(run.id, 1)
        assert taken is not None
        assert taken.run.prompt == HELLO
        assert taken.run.started_at is not None
        assert abs((taken.run.started_at - before).total_seconds()) < 60
        event = encode(run.id, taken.last_event_id + 1, EventType.LOG, {"line": HELLO})
        await store.held.write(run.id, 1, lambda held: held.add_events([event]))
        assert event in await store.events.after(run.id, 0, 100)
        later = encode(run.id, event.id + 1, EventType.LOG, {"line": HELLO})
        assert await store.held.add_events({(run.id, 1): [later]}) == frozenset()
        assert (await store.events.after(run.id, event.id, 100)) == [later]
    finally:
        await database.close()


# --- a database that cannot hold texts ---


@contextmanager
def database_in(server: PostgresServer, encoding: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0".encode())
        yield server.url(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
async def test_a_database_that_is_not_utf_8_is_refused_and_the_error_says_how_to_make_one(
    postgres_server: PostgresServer, encoding: str
) -> None:
    with database_in(postgres_server, encoding) as url:
        database = Database(url)
        store = Store(database)
        for call in (store.migrate, database.check, lambda: store.held.take("a", 1)):
            with pytest.raises(InvalidInput, match=rf"{encoding}.*CREATE DATABASE .*UTF8.*template0"):
                await call()
        await database.close()
