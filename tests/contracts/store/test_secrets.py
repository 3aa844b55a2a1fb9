"""Users' secrets in the store, on each database."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from backplane.errors import NotFound, TooLarge
from backplane.runs import RunStatus
from backplane.secrets import Secret
from backplane.store import Store
from backplane.store.retention import Expired
from backplane.store.secrets import SealedValue
from backplane.users import User
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
    await store.held.take(run.id, 1)
    await store.held.write(run.id, 1, lambda held: held.finish(RunStatus.COMPLETED, None))
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
    taken = await store.held.take(run.id, 1)
    assert taken is not None
    assert not taken.knows_secrets
    await store.secrets.keep_with_run(run.id, [SealedValue("TOKEN", "sealed")])
    taken = await store.held.take(run.id, 2)
    assert taken is not None
    assert taken.knows_secrets


async def test_secrets_that_are_named_are_given_as_they_are_now(store: Store, user: User, stranger: User) -> None:
    await store.secrets.put(user.id, secret(), most=5)
    await store.secrets.put(stranger.id, secret("OTHER"), most=5)
    assert await store.secrets.named(user.id, {"TOKEN", "OTHER", "NONE"}) == {SealedValue("TOKEN", "sealed")}
