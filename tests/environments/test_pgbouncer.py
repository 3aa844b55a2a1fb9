"""PgBouncer before PostgreSQL, as it is found and not as the documents ask for it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from backplane.errors import InvalidInput, Unavailable
from backplane.resources import with_database_of_workers
from backplane.store.database import Database
from tests.conftest import started
from tests.integration.worker.conftest import StartPlatform, start_platform
from tests.integration.worker.test_pool_processes import OVER, message, pool_process, spawn
from tests.platform.workers import worker
from tests.servers import PgBouncer, PostgresServer
from tests.settings import settings_of
from worker.pool.__main__ import with_small_pools

__all__ = ["start_platform"]

pytestmark = pytest.mark.slow

BouncerIn = Callable[[str], PgBouncer]


@pytest.fixture(scope="module")
def bouncer_in(servers_folder: Path, postgres_server: PostgresServer) -> Iterator[BouncerIn]:
    """PgBouncer in a pool mode, one for all tests here."""
    running: dict[str, PgBouncer] = {}
    with contextlib.ExitStack() as stack:

        def in_mode(mode: str) -> PgBouncer:
            if mode not in running:
                folder = servers_folder / f"pgbouncer-{mode}"
                running[mode] = stack.enter_context(started(lambda: PgBouncer(folder, postgres_server, pool_mode=mode)))
            return running[mode]

        yield in_mode


async def ask_in_turns(databases: list[Database]) -> None:
    """Every client asks questions of its own, often enough for each to be prepared, and gets its own answers."""

    async def ask(client: int, database: Database) -> None:
        for _ in range(10):
            for question in range(3):
                answer = f"{client}.{question}"
                rows = await database.change(f"SELECT '{answer}' || %(end)s::text AS answer", {"end": "!"})
                assert rows == [{"answer": f"{answer}!"}]

    clients = (ask(number, each) for number, each in enumerate(databases) for _ in range(4))
    for ended in await asyncio.gather(*clients, return_exceptions=True):
        if ended is not None:
            raise ended


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_without_the_setting_every_client_gets_its_own_answers_and_one_warning_names_it(
    bouncer_in: BouncerIn, postgres_tables: str, mode: str
) -> None:
    databases = [Database(bouncer_in(mode).url(postgres_tables), pool_size=2) for _ in range(2)]
    try:
        with capture_logs() as logs:
            await ask_in_turns(databases)
    finally:
        for database in databases:
            await database.close()
    assert ["DATABASE_PREPARED_STATEMENTS" in line["event"] for line in logs] == [True] * len(databases)


async def test_prepared_statements_that_an_operator_insists_on_name_the_setting_when_they_break(
    bouncer_in: BouncerIn, postgres_tables: str
) -> None:
    databases = [Database(bouncer_in("transaction").url(postgres_tables), pool_size=4, prepares=True) for _ in range(2)]
    try:
        with pytest.raises(Unavailable, match="DATABASE_PREPARED_STATEMENTS=false"):
            await ask_in_turns(databases)
    finally:
        for database in databases:
            await database.close()


async def test_without_a_proxy_statements_are_prepared_and_nothing_is_logged(postgres_database: str) -> None:
    database = Database(postgres_database, pool_size=1)
    try:
        with capture_logs() as logs:
            for _ in range(10):
                await database.change("SELECT 1", {})
            rows = await database.change("SELECT count(*) > 0 AS prepared FROM pg_prepared_statements", {})
    finally:
        await database.close()
    assert (rows, logs) == ([{"prepared": True}], [])


async def test_options_that_pgbouncer_refuses_are_named_with_what_to_do(
    bouncer_in: BouncerIn, postgres_tables: str
) -> None:
    url = f"{bouncer_in('transaction').url(postgres_tables)}?options=-c%20search_path%3Dpublic"
    database = Database(url)
    try:
        with pytest.raises(Unavailable, match="ignore_startup_parameters = options"):
            await database.check()
        with pytest.raises(Unavailable, match="ignore_startup_parameters = options"):
            await database.change("SELECT 1", {})
    finally:
        await database.close()


# --- PGBOUNCER_URL ---


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_workers_and_processes_of_pools_reach_the_database_by_pgbouncer_alone(
    bouncer_in: BouncerIn, postgres_database: str, postgres_tables: str, start_platform: StartPlatform, mode: str
) -> None:
    """Where DATABASE_URL leads, nobody answers them; the API's side of this test goes to the database itself."""
    platform = await start_platform(database_url=postgres_database)
    urls = {
        "pgbouncer_url": SecretStr(bouncer_in(mode).url(postgres_tables)),
        "database_url": SecretStr("postgresql://postgres@127.0.0.1:1/nobody"),
    }
    behind = replace(platform, settings=platform.settings.model_copy(update=urls))
    async with worker(behind.settings):
        run_id = await platform.submit({"id": "a", "tool": "file_write", "arguments": {"path": "a", "content": "a"}})
        await platform.completed(run_id)
    async with pool_process(behind):
        one, two = await spawn(platform, "one", "two")
        runs = [await message(platform, agent) for agent in (one, two, one, two)]
        for run in runs:
            await platform.until(run.id, *OVER)


def test_a_process_of_a_pool_has_few_connections_unless_an_operator_says_otherwise() -> None:
    few = with_small_pools(settings_of())
    assert (few.database_pool_size, few.database_pool_overflow) == (3, 5)
    own = with_small_pools(settings_of(database_pool_size=7, database_pool_overflow=0))
    assert (own.database_pool_size, own.database_pool_overflow) == (7, 0)


@pytest.mark.parametrize("url", ["sqlite:///agent.db", "mysql://h/d", "postgresql://a:b@c@d/e"])
def test_a_pgbouncer_that_is_none_is_refused_by_its_own_name(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^PGBOUNCER_URL: "):
        with_database_of_workers(settings_of(pgbouncer_url=SecretStr(url)))


def test_without_pgbouncer_workers_use_the_database_itself() -> None:
    settings = settings_of(database_url=SecretStr("postgresql://a@b/c"))
    assert with_database_of_workers(settings) is settings
