"""Users' secrets in the store, on each database."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text

from backplane.domain.retention import Expired
from backplane.domain.runs import RunStatus
from backplane.domain.secrets import SealedValue, Secret
from backplane.domain.users import User
from backplane.errors import NotFound, TooLarge
from backplane.store import Store
from backplane.store.database import Database
from tests.databases import downgrade, upgrade
from tests.submitted import new_run


def secret(name: str = "TOKEN", sealed: str = "sealed") -> Secret:
    return Secret(name, sealed, ("shell",), ("example.org",))


async def test_a_secret_is_kept_listed_without_its_value_and_forgotten(store: Store, user: User) -> None:
    kept = await store.secrets.put(user.id, secret(), most=5)
    assert await store.secrets.get(user.id, "TOKEN") == secret()
    assert await store.secrets.list_of(user.id) == [kept]
    assert (kept.tools, kept.hosts, kept.created_at) == (("shell",), ("example.org",), kept.updated_at)
    await store.secrets.delete(user.id, "TOKEN")
    assert await store.secrets.list_of(user.id) == []


async def test_one_of_the_same_name_takes_its_place(store: Store, user: User) -> None:
    first = await store.secrets.put(user.id, secret(), most=1)
    second = await store.secrets.put(user.id, Secret("TOKEN", "other", ("python",), ()), most=1)
    assert (await store.secrets.get(user.id, "TOKEN")).sealed == "other"
    assert await store.secrets.list_of(user.id) == [second]
    assert (second.created_at, second.tools, second.hosts) == (first.created_at, ("python",), ())


async def test_a_secret_is_its_users_alone(store: Store, user: User, stranger: User) -> None:
    await store.secrets.put(user.id, secret(), most=5)
    with pytest.raises(NotFound):
        await store.secrets.get(stranger.id, "TOKEN")
    with pytest.raises(NotFound):
        await store.secrets.delete(stranger.id, "TOKEN")
    assert await store.secrets.list_of(stranger.id) == []
    assert await store.secrets.get(user.id, "TOKEN") == secret()


async def test_there_are_no_more_than_so_many_also_when_they_come_at_once(store: Store, user: User) -> None:
    puts = (store.secrets.put(user.id, secret(f"T{number}"), most=3) for number in range(8))
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(result, TooLarge) for result in done) == 5
    assert len(await store.secrets.list_of(user.id)) == 3


async def test_what_a_run_was_given_is_kept_once_and_goes_with_the_run(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    first, second = SealedValue("TOKEN", "sealed"), SealedValue("TOKEN", "sealed anew")
    await store.secrets.keep_with_run(run.id, [first])
    await store.secrets.keep_with_run(run.id, [first, second])
    assert await store.secrets.kept_with_run(run.id) == {first, second}
    await store.running_runs.take(run.id, 1)
    await store.running_runs.write(run.id, 1, lambda transaction: transaction.finish(RunStatus.COMPLETED, None))
    later = datetime.now(UTC) + timedelta(days=1)
    await store.retention.lease(Expired.RUN, later, 10, seconds=60)
    assert await store.retention.delete_runs([run.id]) == 1
    assert await store.secrets.kept_with_run(run.id) == frozenset()


async def test_what_several_keep_with_a_run_at_once_is_kept_and_refuses_none_of_them(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user))
    values = [SealedValue("TOKEN", f"sealed {number}") for number in range(20)]
    await asyncio.gather(
        *(store.secrets.keep_with_run(run.id, order) for order in (values, values[::-1], values, values[::-1]))
    )
    assert await store.secrets.kept_with_run(run.id) == set(values)


async def test_who_takes_a_run_learns_whether_secrets_are_kept_with_it(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user), start=True)
    taken = await store.running_runs.take(run.id, 1)
    assert taken is not None
    assert not taken.knows_secrets
    await store.secrets.keep_with_run(run.id, [SealedValue("TOKEN", "sealed")])
    taken = await store.running_runs.take(run.id, 2)
    assert taken is not None
    assert taken.knows_secrets


async def test_secrets_that_are_named_are_given_as_they_are_now(store: Store, user: User, stranger: User) -> None:
    await store.secrets.put(user.id, secret(), most=5)
    await store.secrets.put(stranger.id, secret("OTHER"), most=5)
    assert await store.secrets.named(user.id, {"TOKEN", "OTHER", "NONE"}) == {SealedValue("TOKEN", "sealed")}


# --- runs of a release that kept no values with them ---

PLAN = '{"steps":[{"id":"a","tool":"shell","arguments":{"environment":{"KEY":"${secrets.%s}"}}}]}'


async def test_a_run_of_a_release_that_kept_nothing_keeps_all_values_that_it_may_have_been_given(
    empty_database_url: str,
) -> None:
    database = Database(empty_database_url)
    now = "2026-01-01 00:00:00+00:00"

    def as_it_was(connection: Connection) -> None:
        upgrade(connection, "0006")
        for user in ("ada", "eve"):
            _insert(connection, "users", id=user, name=user, tier="standard", created_at=now)
            for name, tools in (("TOKEN", '["shell"]'), ("OTHER", '["shell"]'), ("DOCS", '["http_fetch", "mcp"]')):
                values = {"user_id": user, "name": name, "sealed": f"{name} of {user}", "tools": tools, "hosts": "[]"}
                _insert(connection, "secrets", **values, created_at=now, updated_at=now)
        runs: dict[str, dict[str, str]] = {
            "run-01 plan": {"plan": PLAN % "TOKEN"},
            "run-02 given plan": {"given_plan": PLAN % "TOKEN", "status": "waiting"},
            "run-03 prompt": {"prompt": "use ${secrets.TOKEN} and ${secrets.OTHER}", "status": "queued"},
            "run-04 earlier plan": {"plan": PLAN % "OTHER"},
            "run-05 edited arguments": {"status": "waiting"},
            "run-06 mcp": {"mcp_servers": '["docs"]'},
            "run-07 over": {"plan": PLAN % "TOKEN", "status": "failed"},
            "run-08 fork of it": {"origin": '{"kind":"fork","run_id":"run-07 over"}'},
            "run-09 fork of the fork": {"origin": '{"kind":"fork","run_id":"run-08 fork of it"}'},
            "run-10 of eve": {"plan": PLAN % "TOKEN", "user_id": "eve"},
            "run-11 names none": {"mcp_servers": "[]", "plan": PLAN.replace("${", "$${") % "TOKEN"},
            "run-12 names one that is gone": {"plan": PLAN % "GONE"},
        }
        for run_id, values in runs.items():
            settled: dict[str, object] = {"user_id": "ada", "status": "running", "prompt": "x", "metadata": "{}"}
            numbers = dict.fromkeys(("priority", "generation", "attempt", "timeout_seconds", "max_retries"), 1)
            _insert(connection, "runs", id=run_id, created_at=now, **{**settled, **numbers, **values})
        of_run = {"run_id": "run-04 earlier plan", "version": 1, "plan": PLAN % "TOKEN"}
        _insert(connection, "plan_versions", **of_run, replaced_at=now, reason="x")
        decision = {"id": "d", "run_id": "run-05 edited arguments", "user_id": "ada", "step_id": "a", "asked": "{}"}
        answer = '{"arguments":{"environment":{"KEY":"${secrets.TOKEN}"}}}'
        _insert(connection, "decisions", **decision, kind="approval", status="approved", answer=answer, created_at=now)

    await database.write(as_it_was)
    store = Store(database)
    await store.migrate()
    [token, other, docs] = [SealedValue(name, f"{name} of ada") for name in ("TOKEN", "OTHER", "DOCS")]
    assert {run_id: await store.secrets.kept_with_run(run_id) for run_id in await _ids(database)} == {
        "run-01 plan": {token},
        "run-02 given plan": {token},
        "run-03 prompt": {token, other},
        "run-04 earlier plan": {token, other},
        "run-05 edited arguments": {token},
        "run-06 mcp": {docs},
        "run-07 over": {token},
        "run-08 fork of it": {token},
        "run-09 fork of the fork": {token},
        "run-10 of eve": {SealedValue("TOKEN", "TOKEN of eve")},
        "run-11 names none": set(),
        "run-12 names one that is gone": set(),
    }
    await database.close()


async def test_a_migration_keeps_a_value_once_that_a_run_has_kept_before(store: Store, user: User) -> None:
    run = await store.runs.create(new_run(user, prompt="use ${secrets.TOKEN}"))
    await store.secrets.put(user.id, secret(), most=5)
    await store.secrets.keep_with_run(run.id, [SealedValue("TOKEN", "sealed"), SealedValue("TOKEN", "before")])
    await store.database.write(lambda connection: downgrade(connection, "0008"))
    await store.migrate()
    assert await store.secrets.kept_with_run(run.id) == {SealedValue("TOKEN", "sealed"), SealedValue("TOKEN", "before")}


def _insert(connection: Connection, table: str, **values: object) -> None:
    names = ", ".join(values)
    connection.execute(
        text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"), values
    )


async def _ids(database: Database) -> list[str]:
    return list(
        await database.read(lambda connection: connection.scalars(text("SELECT id FROM runs ORDER BY id")).all())
    )
