"""Users' secrets in the store, on each database."""

import asyncio

import pytest

from backplane.errors import NotFound, TooLarge
from backplane.secrets import Secret
from backplane.store import Store
from backplane.users import User


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
