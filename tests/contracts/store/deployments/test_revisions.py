"""How a deployment comes to another revision: by its user, by a decision, by the platform."""

from typing import Any

import pytest

from backplane.domain.bus import EventFilter
from backplane.domain.deployments import (
    PLATFORM,
    REVISIONS_KEPT,
    Approval,
    Deployment,
    DeploymentEventType,
    DeploymentStatus,
    RevisionOutcome,
    Rollout,
)
from backplane.domain.users import User
from backplane.errors import DeploymentAutoscaled, NotFound, TransitionNotAllowed
from backplane.store import Store
from tests.deployments import AUTOSCALED, ELEVATED, IMAGE, new_deployment, parsed


async def made(store: Store, user: User, **changes: Any) -> Deployment:
    deployment, _ = await store.deployments.create(user, new_deployment(**changes), most=5)
    return deployment


async def rolled_out(store: Store, deployment: Deployment) -> Deployment:
    assert await store.deployments.end_revision(deployment, RevisionOutcome.ROLLED_OUT)
    rollout = Rollout(revision=deployment.current.number, replicas=2, ready_replicas=2, is_complete=True)
    assert await store.deployments.write_rollout(deployment, rollout, DeploymentStatus.RUNNING, "")
    return await store.deployments.get(None, deployment.id)


async def numbers(store: Store, deployment: Deployment) -> list[int]:
    return [revision.number for revision in await store.deployments.revisions(deployment.id, None, 100)]


async def test_another_content_is_a_new_revision_and_the_one_before_never_changes(store: Store, user: User) -> None:
    first = await made(store, user)
    second = await store.deployments.revise(first.id, user, image="image:2")
    third = await store.deployments.revise(first.id, user, manifest=parsed(spec__role="critic"))
    assert [each.current.number for each in (first, second, third)] == [1, 2, 3]
    assert [each.version for each in (first, second, third)] == [1, 2, 3]
    assert (third.current.image, third.current.manifest.role) == ("image:2", "critic")
    newest, middle, oldest = await store.deployments.revisions(first.id, None, 10)
    assert (oldest.image, oldest.manifest, oldest.outcome) == (IMAGE, parsed(), RevisionOutcome.REPLACED)
    assert middle.cause == "another image"
    assert newest == third.current


async def test_the_same_content_changes_nothing(store: Store, user: User) -> None:
    first = await made(store, user)
    assert await store.deployments.revise(first.id, user, image=IMAGE, manifest=parsed()) == first
    assert await store.deployments.revise(first.id, user) == first


async def test_what_was_scaled_by_hand_stays_until_the_manifest_says_otherwise(store: Store, user: User) -> None:
    first = await made(store, user)
    scaled = await store.deployments.scale(first.id, 7, user)
    assert (scaled.replicas, scaled.version, scaled.current.number) == (7, 2, 1)
    assert (await store.deployments.revise(first.id, user, image="image:2")).replicas == 7
    three = parsed(spec__deployment__scaling={"min_replicas": 3})
    assert (await store.deployments.revise(first.id, user, manifest=three)).replicas == 3


async def test_an_autoscaled_deployment_is_not_scaled_by_hand(store: Store, user: User) -> None:
    first = await made(store, user, **AUTOSCALED)
    with pytest.raises(DeploymentAutoscaled, match="1 to 5 replicas"):
        await store.deployments.scale(first.id, 3, user)
    assert (await store.deployments.revise(first.id, user, manifest=parsed())).replicas == 2
    assert (await store.deployments.scale(first.id, 3, user)).replicas == 3


async def test_a_rollback_is_a_new_revision_with_the_content_of_an_older_one(store: Store, user: User) -> None:
    first = await made(store, user)
    await store.deployments.revise(first.id, user, image="image:2")
    await store.deployments.restart(first.id, user)
    back = await store.deployments.roll_back_to(first.id, user)
    assert (back.current.number, back.current.image, back.current.cause) == (4, IMAGE, "back to revision 1")
    forth = await store.deployments.roll_back_to(first.id, user, 2)
    assert (forth.current.number, forth.current.image) == (5, "image:2")
    assert await store.deployments.roll_back_to(first.id, user, 3) == forth
    with pytest.raises(NotFound, match="revision 9"):
        await store.deployments.roll_back_to(first.id, user, 9)


async def test_there_is_nothing_before_the_first_content(store: Store, user: User) -> None:
    first = await made(store, user)
    await store.deployments.restart(first.id, user)
    with pytest.raises(TransitionNotAllowed):
        await store.deployments.roll_back_to(first.id, user)


async def test_a_restart_is_the_same_content_started_anew(store: Store, user: User) -> None:
    first = await made(store, user)
    again = await store.deployments.restart(first.id, user)
    assert (again.current.digest, again.current.restarted) == (first.current.digest, 1)
    assert (await store.deployments.revise(first.id, user, image="image:2")).current.restarted == 1


async def test_what_needs_approval_leaves_the_revision_before_in_effect(store: Store, user: User, admin: User) -> None:
    first = await rolled_out(store, await made(store, user))
    elevated = parsed(**ELEVATED, **AUTOSCALED)
    waiting = await store.deployments.revise(first.id, user, manifest=elevated)
    assert (waiting.current.approval, waiting.effective) == (Approval.PENDING, first.current)
    assert (waiting.status, waiting.replicas) == (DeploymentStatus.DEPLOYING, 2)
    assert "revision 1 goes on meanwhile" in waiting.reason
    assert (await store.deployments.get(user.id, first.id)) == waiting
    approved = await store.deployments.decide(first.id, admin, approve=True)
    assert approved.effective == approved.current
    assert (approved.current.approval, approved.current.decided_by) == (Approval.APPROVED, admin.id)
    assert (approved.replicas, approved.reason) == (None, "")
    assert await store.deployments.decide(first.id, admin, approve=True) == approved


async def test_a_rejected_revision_is_followed_by_the_content_that_runs(store: Store, user: User, admin: User) -> None:
    first = await rolled_out(store, await made(store, user))
    await store.deployments.revise(first.id, user, manifest=parsed(**ELEVATED))
    back = await store.deployments.decide(first.id, admin, approve=False, reason="not on a Friday", number=2)
    assert (back.current.number, back.current.digest) == (3, first.current.digest)
    assert (back.current.created_by, back.effective) == (PLATFORM, back.current)
    [_, rejected, _] = await store.deployments.revisions(first.id, None, 10)
    assert (rejected.approval, rejected.outcome) == (Approval.REJECTED, RevisionOutcome.FAILED)
    assert rejected.decision_reason == "not on a Friday"
    assert await store.deployments.decide(first.id, admin, approve=False, number=2) == back
    with pytest.raises(TransitionNotAllowed):
        await store.deployments.decide(first.id, admin, approve=True, number=2)


async def test_a_first_revision_that_is_rejected_has_failed(store: Store, user: User, admin: User) -> None:
    first = await made(store, user, **ELEVATED)
    rejected = await store.deployments.decide(first.id, admin, approve=False, reason="no")
    assert (rejected.status, rejected.effective) == (DeploymentStatus.FAILED, None)
    assert rejected.reason == "revision 1 was rejected: no"
    assert await store.deployments.get(user.id, first.id) == rejected


async def test_what_was_rejected_is_neither_restarted_nor_gone_back_to_by_anybody(
    store: Store, user: User, admin: User
) -> None:
    first = await made(store, user, **ELEVATED)
    await store.deployments.decide(first.id, admin, approve=False, reason="no")
    for who in (user, admin):
        with pytest.raises(TransitionNotAllowed, match="revision 1 was rejected"):
            await store.deployments.restart(first.id, who)
    await store.deployments.revise(first.id, user, manifest=parsed())
    for who in (user, admin):
        with pytest.raises(TransitionNotAllowed, match="revision 1 was rejected"):
            await store.deployments.roll_back_to(first.id, who, 1)
    assert (await store.deployments.get(None, first.id)).effective is not None


async def test_a_decision_about_a_revision_that_was_replaced_is_refused(store: Store, user: User, admin: User) -> None:
    first = await made(store, user, **ELEVATED)
    await store.deployments.revise(first.id, user, image="evil:1")
    with pytest.raises(TransitionNotAllowed):
        await store.deployments.decide(first.id, admin, approve=True, number=1)
    assert (await store.deployments.get(user.id, first.id)).effective is None


async def test_what_was_approved_once_needs_no_leave_again(store: Store, user: User, admin: User) -> None:
    first = await made(store, user, **ELEVATED)
    await store.deployments.decide(first.id, admin, approve=True)
    other = await store.deployments.revise(first.id, user, image="image:2")
    assert other.current.approval is Approval.PENDING
    back = await store.deployments.roll_back_to(first.id, user)
    assert (back.current.approval, back.current.decided_by) == (Approval.APPROVED, admin.id)
    assert (await store.deployments.restart(first.id, user)).current.approval is Approval.APPROVED


async def test_nothing_waits_for_a_decision_that_needs_none(store: Store, user: User, admin: User) -> None:
    first = await made(store, user)
    for approve in (True, False):
        with pytest.raises(TransitionNotAllowed):
            await store.deployments.decide(first.id, admin, approve=approve)
    waiting = await store.deployments.revise(first.id, user, manifest=parsed(**ELEVATED))
    with pytest.raises(TransitionNotAllowed):
        await store.deployments.restart(waiting.id, user)


async def test_the_platform_goes_back_to_the_last_revision_that_was_rolled_out(store: Store, user: User) -> None:
    first = await rolled_out(store, await made(store, user))
    await store.deployments.revise(first.id, user, image="never-ended:2")
    broken = await store.deployments.revise(first.id, user, image="broken:3")
    back = await store.deployments.roll_back(broken, "ImagePullBackOff")
    assert back is not None
    assert (back.current.number, back.current.image, back.effective) == (4, IMAGE, back.current)
    assert [(one.number, one.outcome) for one in await store.deployments.revisions(first.id, None, 10)] == [
        (4, RevisionOutcome.PENDING),
        (3, RevisionOutcome.FAILED),
        (2, RevisionOutcome.REPLACED),
        (1, RevisionOutcome.ROLLED_OUT),
    ]
    newest = (await store.deployments.events(first.id, None, 1))[0]
    assert (newest.type, newest.revision) == (DeploymentEventType.ROLLED_BACK, 4)
    assert await store.deployments.roll_back(broken, "a controller that saw an older version") is None
    assert await store.deployments.roll_back(back, "this one is a way back already") is None


async def test_the_platform_has_nothing_to_go_back_to(store: Store, user: User) -> None:
    first = await made(store, user)
    assert await store.deployments.roll_back(first, "broken") is None
    restarted = await store.deployments.restart((await rolled_out(store, first)).id, user)
    assert await store.deployments.roll_back(restarted, "the same content") is None
    assert await numbers(store, first) == [2, 1]


async def test_old_revisions_go_but_not_the_one_that_a_rollback_would_go_to(store: Store, user: User) -> None:
    first = await rolled_out(store, await made(store, user))
    for number in range(REVISIONS_KEPT + 5):
        newest = await store.deployments.revise(first.id, user, image=f"image:{number}")
    kept = await numbers(store, first)
    assert kept == [*range(newest.current.number, newest.current.number - REVISIONS_KEPT, -1), 1]
    back = await store.deployments.roll_back(newest, "broken")
    assert back is not None
    assert back.current.image == IMAGE


async def test_a_new_status_and_a_rollback_are_events_on_the_bus_of_the_owner(store: Store, user: User) -> None:
    first = await rolled_out(store, await made(store, user))
    broken = await store.deployments.revise(first.id, user, image="broken:2")
    await store.deployments.roll_back(broken, "broken")
    found = await store.bus.page(user.id, 0, 10, EventFilter.of(["deployment.*"], [], []))
    assert [event.type for event in found.events] == [
        "deployment.deploying",
        "deployment.running",
        "deployment.deploying",
        "deployment.rolled_back",
    ]
    assert first.id in found.events[0].line
