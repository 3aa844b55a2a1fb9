"""What a controller reads of all deployments in each pass: on each database."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from backplane.domain.deployments import DeploymentStatus, RevisionOutcome, Rollout
from backplane.domain.users import User
from backplane.store import DeploymentStore, Store
from backplane.store.deployments import deployments
from controller.deployments.wanted import WantedDeployments
from tests.deployments import ELEVATED, new_deployment

ROLLOUT = Rollout(revision=1, replicas=2, seen_at=datetime(2026, 11, 30, tzinfo=UTC))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the rows whose manifests were read."""
    ids: list[str] = []
    of_ids = DeploymentStore.of_ids

    async def counted(store: DeploymentStore, asked: Sequence[str]) -> Any:
        ids.extend(asked)
        return await of_ids(store, asked)

    monkeypatch.setattr(DeploymentStore, "of_ids", counted)
    return ids


async def test_all_are_read_page_by_page_once(
    store: Store, user: User, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "PAGE", 2)
    made = [(await store.deployments.create(user, new_deployment(f"a{n}"), most=9))[0] for n in range(5)]
    wanted = WantedDeployments(store.deployments)
    for _ in range(2):
        assert await wanted.read() == sorted(made, key=lambda one: one.id)
    assert sorted(read) == sorted(one.id for one in made)


async def test_each_change_of_one_is_read_and_no_other_one_with_it(
    store: Store, user: User, admin: User, read: list[str]
) -> None:
    one, other = [(await store.deployments.create(user, new_deployment(f"a{n}"), most=9))[0] for n in range(2)]
    wanted, calls = WantedDeployments(store.deployments), store.deployments

    async def changes() -> AsyncGenerator[object, None]:
        yield await calls.write_rollout(one, ROLLOUT, DeploymentStatus.RUNNING, "")
        yield await calls.end_revision(one, RevisionOutcome.FAILED, "why")
        yield await calls.revise(one.id, user, image="image:2")
        yield await calls.scale(one.id, 1, user)
        yield await calls.pause(one.id, user)
        elevated = new_deployment(**ELEVATED).manifest
        yield await calls.revise(one.id, user, manifest=elevated)
        yield await calls.decide(one.id, admin, approve=True)
        yield await calls.delete(one.id, user, 1)

    await wanted.read()
    async with aclosing(changes()) as each:
        async for _ in each:
            read.clear()
            assert await calls.get(None, one.id) in await wanted.read()
            assert read == [one.id]
    await calls.forget(one.id)
    assert await wanted.read() == [other]
