"""What a controller writes, what is dropped, and how a deployment goes: on each database."""

import asyncio
from datetime import UTC, datetime

import pytest

from backplane.domain.bus import Announcement, EventFilter
from backplane.domain.deployments import (
    EVENTS_KEPT,
    Deployment,
    DeploymentEventType,
    DeploymentStatus,
    RevisionOutcome,
    Rollout,
)
from backplane.domain.users import User
from backplane.errors import NotFound, TransitionNotAllowed
from backplane.store import Store
from controller.deployments.wanted import WantedDeployments
from tests.deployments import new_deployment

NOW = datetime(2026, 11, 30, tzinfo=UTC)
ROLLOUT = Rollout(
    revision=1,
    replicas=2,
    ready_replicas=1,
    updated_replicas=2,
    reason="1 of 2 replicas is ready",
    drift=("spec.replicas: wanted 2, found 5",),
    began_at=NOW,
    seen_at=NOW,
)


@pytest.fixture
async def deployment(store: Store, user: User) -> Deployment:
    made, _ = await store.deployments.create(user, new_deployment(), most=5)
    return made


async def test_what_was_found_is_read_as_it_was_written(store: Store, deployment: Deployment) -> None:
    written = await store.deployments.write_rollout(
        deployment,
        ROLLOUT,
        DeploymentStatus.RUNNING,
        "1 of 2 replicas is ready",
        [(DeploymentEventType.DEGRADED, "1 of 2")],
    )
    assert written
    found = await store.deployments.get(None, deployment.id)
    assert (found.rollout, found.status, found.reason) == (
        ROLLOUT,
        DeploymentStatus.RUNNING,
        "1 of 2 replicas is ready",
    )
    assert found.version == deployment.version
    newest, created = await store.deployments.events(deployment.id, None, 10)
    assert (newest.type, newest.message, newest.number) == (DeploymentEventType.DEGRADED, "1 of 2", 2)
    assert created.type is DeploymentEventType.CREATED
    assert await store.deployments.events(deployment.id, newest.number, 10) == [created]


async def test_what_was_found_of_an_older_version_is_dropped(store: Store, user: User, deployment: Deployment) -> None:
    changed = await store.deployments.scale(deployment.id, 5, user)
    assert not await store.deployments.write_rollout(deployment, ROLLOUT, DeploymentStatus.RUNNING, "")
    assert not await store.deployments.end_revision(deployment, RevisionOutcome.FAILED)
    assert await store.deployments.get(None, deployment.id) == changed


async def test_nothing_is_written_of_a_deployment_that_is_gone(store: Store, deployment: Deployment) -> None:
    await store.deployments.forget(deployment.id)
    assert not await store.deployments.write_rollout(deployment, ROLLOUT, DeploymentStatus.RUNNING, "")
    assert not await store.deployments.end_revision(deployment, RevisionOutcome.ROLLED_OUT)
    assert await store.deployments.roll_back(deployment, "broken") is None
    await store.deployments.gone(deployment)


async def test_a_revision_ends_once_and_one_that_failed_may_roll_out_yet(store: Store, deployment: Deployment) -> None:
    for outcome, expected in (
        (RevisionOutcome.FAILED, RevisionOutcome.FAILED),
        (RevisionOutcome.ROLLED_OUT, RevisionOutcome.ROLLED_OUT),
        (RevisionOutcome.FAILED, RevisionOutcome.ROLLED_OUT),
        (RevisionOutcome.ROLLED_OUT, RevisionOutcome.ROLLED_OUT),
    ):
        assert await store.deployments.end_revision(deployment, outcome, "a reason")
        assert (await store.deployments.get(None, deployment.id)).current.outcome is expected
    events = await store.deployments.events(deployment.id, None, 10)
    assert [event.type.value for event in events] == ["rolled_out", "failed", "created"]


async def test_pausing_and_resuming_raise_the_version_once_each(
    store: Store, user: User, deployment: Deployment
) -> None:
    paused = await store.deployments.pause(deployment.id, user)
    assert (paused.paused, paused.version) == (True, 2)
    assert await store.deployments.pause(deployment.id, user) == paused
    resumed = await store.deployments.resume(deployment.id, user)
    assert (resumed.paused, resumed.version) == (False, 3)


async def test_two_changes_at_once_are_both_made(
    store: Store, second_store: Store, user: User, deployment: Deployment
) -> None:
    await asyncio.gather(
        *(
            each.deployments.revise(deployment.id, user, image=f"image:{n}")
            for n, each in enumerate((store, second_store) * 3)
        )
    )
    found = await store.deployments.get(None, deployment.id)
    assert (found.current.number, found.version) == (7, 7)


async def test_a_deployment_goes_when_a_controller_found_nothing_left(
    store: Store, user: User, deployment: Deployment
) -> None:
    await store.deployments.gone(deployment)
    deleting = await store.deployments.delete(deployment.id, user, 5)
    assert (deleting.status, deleting.delete_grace_seconds) == (DeploymentStatus.STOPPED, 5)
    assert deleting.deleted_at is not None
    assert await store.deployments.delete(deployment.id, user, 60) == deleting
    for change in (
        store.deployments.scale(deployment.id, 1, user),
        store.deployments.restart(deployment.id, user),
        store.deployments.pause(deployment.id, user),
    ):
        with pytest.raises(TransitionNotAllowed):
            await change
    assert await WantedDeployments(store.deployments).read() == [deleting]
    await store.deployments.gone(deleting)
    with pytest.raises(NotFound):
        await store.deployments.get(None, deployment.id)
    assert await WantedDeployments(store.deployments).read() == []
    found = await store.bus.page(user.id, 0, 10, EventFilter.of(["deployment.deleted"], [], []))
    assert len(found.events) == 1


async def test_old_events_go(store: Store, user: User, deployment: Deployment) -> None:
    many = [(DeploymentEventType.DEGRADED, str(number)) for number in range(EVENTS_KEPT)]
    assert await store.deployments.write_rollout(deployment, ROLLOUT, DeploymentStatus.RUNNING, "", many)
    events = await store.deployments.events(deployment.id, None, EVENTS_KEPT + 10)
    assert [event.number for event in events] == list(range(EVENTS_KEPT + 1, 1, -1))


async def test_who_listens_to_the_bus_is_called_after_the_commit(store: Store, user: User) -> None:
    called: list[Announcement] = []

    async def ring(announcements: object) -> None:
        assert isinstance(announcements, list)
        called.extend(announcements)

    store.bus_bell.rings(ring)
    deployment, _ = await store.deployments.create(user, new_deployment(), most=5)
    await store.deployments.write_rollout(deployment, ROLLOUT, DeploymentStatus.RUNNING, "")
    await store.deployments.write_rollout(deployment, ROLLOUT, DeploymentStatus.RUNNING, "the same status")
    assert [one.type for one in called] == ["deployment.deploying", "deployment.running"]
    assert {one.user_id for one in called} == {user.id}
