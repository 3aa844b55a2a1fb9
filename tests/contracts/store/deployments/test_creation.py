"""What makes a deployment, and what is refused: on each database."""

import asyncio
from dataclasses import replace

import pytest

from backplane.domain.deployments import (
    NAMESPACES_MAX,
    Approval,
    Deployment,
    DeploymentFilter,
    DeploymentStatus,
    RevisionOutcome,
)
from backplane.domain.users import User
from backplane.errors import DeploymentExists, IdempotencyKeyReused, NamespaceTaken, NotFound, TooLarge
from backplane.store import Store
from tests.deployments import AUTOSCALED, ELEVATED, IMAGE, new_deployment, parsed

EVERY = DeploymentFilter()


async def made(store: Store, user: User, agent_id: str = "support", namespace: str = "team-a") -> Deployment:
    deployment, _ = await store.deployments.create(user, new_deployment(agent_id, namespace), most=100)
    return deployment


async def test_a_deployment_is_read_as_it_was_made(store: Store, user: User) -> None:
    deployment, is_new = await store.deployments.create(user, new_deployment(), most=5)
    assert is_new
    assert (deployment.status, deployment.replicas, deployment.version) == (DeploymentStatus.DEPLOYING, 2, 1)
    revision = deployment.current
    assert (revision.number, revision.image, revision.manifest) == (1, IMAGE, parsed())
    assert (revision.approval, revision.outcome) == (Approval.NOT_NEEDED, RevisionOutcome.PENDING)
    assert deployment.effective == revision
    assert await store.deployments.get(user.id, deployment.id) == deployment
    assert await store.deployments.get(None, deployment.id) == deployment


async def test_an_autoscaled_deployment_has_no_number_of_replicas(store: Store, user: User) -> None:
    deployment, _ = await store.deployments.create(user, new_deployment(**AUTOSCALED), most=5)
    assert deployment.replicas is None


async def test_another_users_deployment_is_not_found(store: Store, user: User, stranger: User) -> None:
    deployment = await made(store, user)
    with pytest.raises(NotFound):
        await store.deployments.get(stranger.id, deployment.id)
    assert await store.deployments.list_of(stranger.id, EVERY, before=None, limit=10) == []


async def test_an_agent_is_deployed_once_in_a_namespace(store: Store, user: User) -> None:
    first = await made(store, user)
    with pytest.raises(DeploymentExists, match=first.id):
        await made(store, user)
    await made(store, user, namespace="team-b")
    await made(store, user, "other")


async def test_a_namespace_is_the_first_users_also_when_nothing_is_deployed_there_any_more(
    store: Store, user: User, stranger: User, admin: User
) -> None:
    deployment = await made(store, user)
    await store.deployments.forget(deployment.id)
    for other in (stranger, admin):
        with pytest.raises(NamespaceTaken) as refused:
            await made(store, other)
        assert user.name not in refused.value.message
    await made(store, user)


async def test_a_namespace_that_two_users_ask_for_at_once_is_given_to_one(
    store: Store, second_store: Store, user: User, stranger: User
) -> None:
    asked = (made(each, who, f"a{n}") for n in range(3) for each, who in ((store, user), (second_store, stranger)))
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert len({result.user_id for result in done if isinstance(result, Deployment)}) == 1
    assert sum(isinstance(result, Deployment) for result in done) == 3
    assert sum(isinstance(result, NamespaceTaken) for result in done) == 3


async def test_a_user_has_so_many_deployments_and_no_more(store: Store, user: User, stranger: User) -> None:
    await store.deployments.create(user, new_deployment("one"), most=2)
    await store.deployments.create(user, new_deployment("two"), most=2)
    with pytest.raises(TooLarge):
        await store.deployments.create(user, new_deployment("three"), most=2)
    await store.deployments.create(stranger, new_deployment("one", "team-b"), most=2)


async def test_of_creations_at_once_only_so_many_fit(store: Store, second_store: Store, user: User) -> None:
    creations = [
        each.deployments.create(user, new_deployment(f"a{number}"), most=2)
        for number, each in enumerate((store, second_store) * 3)
    ]
    done = await asyncio.gather(*creations, return_exceptions=True)
    assert sum(isinstance(result, TooLarge) for result in done) == 4


async def test_a_user_has_so_many_namespaces_and_no_more(store: Store, user: User) -> None:
    for number in range(NAMESPACES_MAX):
        await made(store, user, namespace=f"n{number}")
    with pytest.raises(TooLarge):
        await made(store, user, namespace="one-more")
    await made(store, user, "other", namespace="n0")


async def test_the_same_key_and_request_answer_the_same_deployment(store: Store, user: User, stranger: User) -> None:
    new = replace(new_deployment(), idempotency=("key", "digest"))
    first, is_new = await store.deployments.create(user, new, most=5)
    again, is_new_again = await store.deployments.create(user, new, most=1)
    assert (is_new, is_new_again, again.id) == (True, False, first.id)
    with pytest.raises(IdempotencyKeyReused):
        await store.deployments.create(user, replace(new, idempotency=("key", "another")), most=5)
    other, _ = await store.deployments.create(stranger, replace(new, namespace="team-b"), most=5)
    assert other.id != first.id


async def test_requests_with_one_key_at_once_make_one_deployment(store: Store, second_store: Store, user: User) -> None:
    new = replace(new_deployment(), idempotency=("key", "digest"))
    done = await asyncio.gather(*(each.deployments.create(user, new, most=5) for each in (store, second_store) * 3))
    assert len({deployment.id for deployment, _ in done}) == 1
    assert sum(is_new for _, is_new in done) == 1


async def test_a_tier_that_needs_approval_waits_for_it_unless_an_administrator_asks(
    store: Store, user: User, admin: User
) -> None:
    waiting, _ = await store.deployments.create(user, new_deployment(**ELEVATED), most=5)
    assert (waiting.current.approval, waiting.effective) == (Approval.PENDING, None)
    assert "approve" in waiting.reason
    running, _ = await store.deployments.create(admin, new_deployment(namespace="team-b", **ELEVATED), most=5)
    assert (running.current.approval, running.current.decided_by) == (Approval.APPROVED, admin.id)
    assert running.effective == running.current


async def test_lists_have_the_newest_first_in_pages_and_are_filtered(store: Store, user: User, stranger: User) -> None:
    mine = [await made(store, user, f"a{number}", f"n{number % 2}") for number in range(5)]
    theirs = await made(store, stranger, "a0", "other")
    first = await store.deployments.list_of(user.id, EVERY, before=None, limit=3)
    rest = await store.deployments.list_of(user.id, EVERY, before=first[-1].id, limit=3)
    assert [one.id for one in [*first, *rest]] == [one.id for one in reversed(mine)]

    async def found(wanted: DeploymentFilter, user_id: str | None = None) -> set[str]:
        return {one.id for one in await store.deployments.list_of(user_id, wanted, before=None, limit=100)}

    assert await found(EVERY) == {one.id for one in [*mine, theirs]}
    assert await found(DeploymentFilter(namespace="n1")) == {mine[1].id, mine[3].id}
    assert await found(DeploymentFilter(agent_id="a0")) == {mine[0].id, theirs.id}
    assert await found(DeploymentFilter(agent_id="a0"), user.id) == {mine[0].id}
    assert await found(DeploymentFilter(status=DeploymentStatus.RUNNING)) == set()
    assert len(await found(DeploymentFilter(status=DeploymentStatus.DEPLOYING))) == 6
    assert await found(DeploymentFilter(approval=Approval.PENDING)) == set()
