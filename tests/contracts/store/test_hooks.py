"""Hooks of users in the store, on each database."""

import asyncio

import pytest

from backplane.domain.hooks import HookKind
from backplane.domain.users import User
from backplane.errors import NotFound, TooLarge
from backplane.store import Store

GITHUB, STANDARD = HookKind.GITHUB, HookKind.STANDARD


async def test_a_hook_is_made_found_by_its_address_and_deleted(store: Store, user: User) -> None:
    made = await store.hooks.put(user.id, "ci", GITHUB, "ci.pushed", "sealed", most=5)
    assert await store.hooks.get(user.id, "ci") == made
    assert await store.hooks.at(made.address) == made
    assert await store.hooks.list_of(user.id) == [made]
    assert "sealed" not in repr(made)
    await store.hooks.delete(user.id, "ci")
    assert await store.hooks.at(made.address) is None
    with pytest.raises(NotFound):
        await store.hooks.delete(user.id, "ci")


async def test_one_of_the_same_name_keeps_its_address_and_its_secret(store: Store, user: User) -> None:
    first = await store.hooks.put(user.id, "ci", GITHUB, "ci.pushed", "sealed", most=1)
    changed = await store.hooks.put(user.id, "ci", STANDARD, "ci.done", None, most=1)
    assert (changed.address, changed.sealed, changed.type) == (first.address, "sealed", "ci.done")
    assert (await store.hooks.put(user.id, "ci", STANDARD, "ci.done", "anew", most=1)).sealed == "anew"


async def test_a_hook_is_its_users_alone(store: Store, user: User, stranger: User) -> None:
    made = await store.hooks.put(user.id, "ci", GITHUB, "ci.pushed", "sealed", most=5)
    for call in (store.hooks.get(stranger.id, "ci"), store.hooks.delete(stranger.id, "ci")):
        with pytest.raises(NotFound):
            await call
    other = await store.hooks.put(stranger.id, "ci", GITHUB, "ci.pushed", "sealed", most=5)
    assert other.address != made.address
    assert await store.hooks.list_of(stranger.id) == [other]


async def test_a_hook_without_a_secret_is_not_made(store: Store, user: User) -> None:
    with pytest.raises(NotFound):
        await store.hooks.put(user.id, "ci", GITHUB, "ci.pushed", None, most=5)


async def test_there_are_no_more_than_so_many_also_when_they_come_at_once(store: Store, user: User) -> None:
    puts = (store.hooks.put(user.id, f"h{number}", GITHUB, "x", "sealed", most=3) for number in range(6))
    done = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(result, TooLarge) for result in done) == 3
    assert len(await store.hooks.list_of(user.id)) == 3
