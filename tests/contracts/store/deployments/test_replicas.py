"""How many replicas a user may have in all, and who is counted: on each database."""

import asyncio
from typing import Any

import pytest

from backplane.domain.deployments import Deployment
from backplane.domain.users import User
from backplane.errors import TooLarge
from backplane.store import Store
from tests.deployments import AUTOSCALED, ELEVATED, new_deployment, parsed

TEN: dict[str, Any] = {"spec__deployment__scaling": {"min_replicas": 10}}


async def made(store: Store, user: User, agent_id: str = "support", *, most: int = 10, **changes: Any) -> Deployment:
    new = new_deployment(agent_id, f"of-{user.name}", **changes)
    return (await store.deployments.create(user, new, most=100, replicas=most))[0]


async def test_so_many_replicas_fit_and_not_one_more(store: Store, user: User, stranger: User) -> None:
    first = await made(store, user)
    second = await made(store, user, "other")
    assert (await store.deployments.scale(first.id, 8, user, most=10)).replicas == 8
    with pytest.raises(TooLarge, match="up to 3 replicas, and your other deployments have 8: 10 in all"):
        await store.deployments.scale(second.id, 3, user, most=10)
    with pytest.raises(TooLarge):
        await made(store, user, "third")
    assert (await store.deployments.get(None, second.id)).replicas == 2
    assert await made(store, stranger, **TEN)


async def test_what_is_stopped_or_gone_counts_no_more(store: Store, user: User) -> None:
    first = await made(store, user, **TEN)
    await store.deployments.scale(first.id, 0, user, most=10)
    second = await made(store, user, "second", **TEN)
    with pytest.raises(TooLarge):
        await store.deployments.scale(first.id, 1, user, most=10)
    await store.deployments.forget(second.id)
    await store.deployments.scale(first.id, 10, user, most=10)


async def test_what_is_being_deleted_counts_until_it_is_gone(store: Store, user: User) -> None:
    first = await made(store, user, **TEN)
    deleting = await store.deployments.delete(first.id, user, 1)
    with pytest.raises(TooLarge):
        await made(store, user, "second")
    await store.deployments.gone(deleting)
    await made(store, user, "second")


async def test_an_autoscaled_one_counts_its_maximum(store: Store, user: User) -> None:
    await made(store, user, **AUTOSCALED)
    second = await made(store, user, "second", most=7)
    with pytest.raises(TooLarge, match="have 5"):
        await store.deployments.scale(second.id, 3, user, most=7)
    with pytest.raises(TooLarge, match="up to 5"):
        await store.deployments.revise(second.id, user, manifest=parsed(**AUTOSCALED), most=7)


async def test_what_waits_for_approval_counts_already(store: Store, user: User, admin: User) -> None:
    first = await made(store, user)
    with pytest.raises(TooLarge):
        await store.deployments.revise(first.id, user, manifest=parsed(**ELEVATED, **TEN), most=9)
    await store.deployments.revise(first.id, user, manifest=parsed(**ELEVATED, **TEN), most=10)
    with pytest.raises(TooLarge):
        await made(store, user, "second")
    await store.deployments.decide(first.id, admin, approve=False)
    await made(store, user, "second")


async def test_a_rollback_to_more_replicas_than_may_be_is_refused(store: Store, user: User) -> None:
    first = await made(store, user, **TEN)
    await store.deployments.revise(first.id, user, manifest=parsed(), most=10)
    await made(store, user, "second")
    with pytest.raises(TooLarge):
        await store.deployments.roll_back_to(first.id, user, most=10)


async def test_who_is_over_a_cap_that_was_lowered_may_still_change_and_scale_down(store: Store, user: User) -> None:
    first = await made(store, user, **TEN)
    assert (await store.deployments.revise(first.id, user, image="image:2", most=5)).current.number == 2
    assert (await store.deployments.scale(first.id, 9, user, most=5)).replicas == 9
    with pytest.raises(TooLarge):
        await store.deployments.scale(first.id, 10, user, most=5)


async def test_of_changes_at_once_only_so_many_fit(store: Store, second_store: Store, user: User) -> None:
    there = [await made(store, user, f"a{number}") for number in range(4)]
    scaled = [
        each.deployments.scale(one.id, 4, user, most=12)
        for one, each in zip(there, (store, second_store) * 2, strict=True)
    ]
    done = await asyncio.gather(*scaled, return_exceptions=True)
    assert sum(isinstance(result, TooLarge) for result in done) == 2
