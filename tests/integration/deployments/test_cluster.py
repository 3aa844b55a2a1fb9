"""Deployments in a cluster: what is written, what is refused, and what becomes of it when the cluster fails."""

import pytest

from backplane.domain.deployments import DeploymentStatus, RevisionOutcome
from controller.deployments.kubernetes.objects import INSTANCE_LABEL, MANAGED_BY, MANAGER
from tests.deployed_agents import agent_manifest
from tests.integration.deployments.conftest import NAMESPACE, Beside
from tests.waiting import wait_until

RUNNING, FAILED, STOPPED = DeploymentStatus.RUNNING, DeploymentStatus.FAILED, DeploymentStatus.STOPPED


async def test_an_agent_is_rolled_out_scaled_changed_gone_back_and_deleted_without_a_trace(beside: Beside) -> None:
    store, user = beside.store.deployments, beside.user
    made = await beside.deploy()
    async with beside.controller():
        await beside.until(made, lambda it: it.status is RUNNING and it.current.outcome is RevisionOutcome.ROLLED_OUT)
        await store.scale(made.id, 3, user)
        await beside.until(made, lambda it: it.rollout.is_complete and it.rollout.ready_replicas == 3)
        assert beside.kinds() == {
            **dict.fromkeys(("deployments", "services", "networkpolicies", "poddisruptionbudgets"), 1),
            "pods": 3,
        }
        await store.revise(made.id, user, image="image:2")
        await beside.until(made, lambda it: it.rollout.revision == 2 and it.status is RUNNING)
        await store.roll_back_to(made.id, user)
        await beside.until(made, lambda it: it.rollout.revision == 3 and it.status is RUNNING)
        await store.scale(made.id, 0, user)
        await beside.until(made, lambda it: it.status is STOPPED)
        await store.delete(made.id, user, 0)
        await beside.until_gone(made)
    assert beside.kinds() == {}


async def test_an_image_that_cannot_be_pulled_fails_with_the_nodes_words_and_is_taken_back(beside: Beside) -> None:
    made = await beside.deploy(agent_manifest(auto_rollback=True))
    beside.cluster.broken = {"broken:1"}
    async with beside.controller():
        await beside.until(made, lambda it: it.current.outcome is RevisionOutcome.ROLLED_OUT)
        await beside.store.deployments.revise(made.id, beside.user, image="broken:1")
        await beside.until(made, lambda it: it.current.number == 3 and it.status is RUNNING)
    failed = (await beside.store.deployments.revisions(made.id, 3, 1))[0]
    assert failed.outcome is RevisionOutcome.FAILED
    assert "no such image" in failed.outcome_reason


async def test_a_namespace_of_somebody_else_is_named_and_left_as_it_is(beside: Beside) -> None:
    theirs = beside.cluster.put("v1", "namespaces", {"metadata": {"name": NAMESPACE, "labels": {MANAGED_BY: "Helm"}}})
    made = await beside.deploy()
    async with beside.controller():
        found = await beside.until(made, lambda it: it.status is FAILED)
        assert "belongs to what calls itself Helm" in found.reason
        assert beside.kinds() == {}
        beside.cluster.put(
            "v1",
            "namespaces",
            {
                "metadata": {
                    "name": NAMESPACE,
                    "labels": {MANAGED_BY: MANAGER, INSTANCE_LABEL: beside.rules.platform_id},
                }
            },
        )
        await beside.until(made, lambda it: it.status is RUNNING)
    assert theirs["metadata"]["labels"] == {MANAGED_BY: "Helm"}


@pytest.mark.parametrize("labels", [{}, {MANAGED_BY: "Helm"}, {MANAGED_BY: MANAGER, INSTANCE_LABEL: "another"}])
async def test_an_object_of_somebody_else_is_neither_changed_nor_deleted(
    beside: Beside, labels: dict[str, str]
) -> None:
    made = await beside.deploy()
    name = made.object_name
    one = {"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": {"ports": [{"port": 99}]}}
    beside.cluster.put("v1", "services", one)
    async with beside.controller():
        found = await beside.until(made, lambda it: it.status is FAILED)
        assert f"Service {name} is there already in {NAMESPACE}" in found.reason
        await beside.store.deployments.delete(made.id, beside.user, 0)
        await beside.until_gone(made)
    assert beside.cluster.of("services") == [one]


async def test_what_others_change_is_shown_and_goes_with_the_next_revision(beside: Beside) -> None:
    made = await beside.deploy()
    async with beside.controller():
        await beside.until(made, lambda it: it.status is RUNNING and it.rollout.is_complete)
        service = beside.cluster.of("services")[0]
        service["spec"]["type"] = "NodePort"
        found = await beside.until(made, lambda it: it.rollout.drift)
        assert found.rollout.drift == ("Service spec.type: wanted ClusterIP, found NodePort",)
        await beside.store.deployments.restart(made.id, beside.user)
        await beside.until(made, lambda it: it.rollout.revision == 2 and not it.rollout.drift)
    assert beside.cluster.of("services")[0]["spec"]["type"] == "ClusterIP"


async def test_a_namespace_that_was_deleted_underneath_is_made_anew(beside: Beside) -> None:
    made = await beside.deploy()
    async with beside.controller():
        await beside.until(made, lambda it: it.status is RUNNING)
        namespace = next(one for one in beside.cluster.of("namespaces"))
        namespace["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z"
        for pod in [key for key in beside.cluster.objects if key[1] != "namespaces"]:
            del beside.cluster.objects[pod]
        await beside.until(made, lambda it: f"the namespace {NAMESPACE} is being deleted" in it.reason)
        beside.cluster.take_away_namespace(NAMESPACE)
        await beside.until(made, lambda it: it.status is RUNNING and it.rollout.is_complete)


async def test_an_autoscaler_keeps_the_number_that_it_finds(beside: Beside) -> None:
    store = beside.store.deployments
    made = await beside.deploy(agent_manifest(scaling={"min_replicas": 3}))
    async with beside.controller():
        await beside.until(made, lambda it: it.rollout.is_complete)
        scaled = agent_manifest(scaling={"min_replicas": 1, "max_replicas": 5})
        await store.revise(made.id, beside.user, manifest=scaled)
        found = await beside.until(made, lambda it: it.rollout.revision == 2 and it.rollout.is_complete)
        assert found.rollout.replicas == 3
        await store.revise(made.id, beside.user, manifest=agent_manifest())
        await beside.until(made, lambda it: it.rollout.revision == 3 and it.rollout.ready_replicas == 1)
    assert "horizontalpodautoscalers" not in beside.kinds()


@pytest.mark.parametrize("status", [409, 410, 429, 500, 503])
async def test_a_server_that_fails_for_a_while_delays_and_loses_nothing(beside: Beside, status: int) -> None:
    made = await beside.deploy(agent_manifest(scaling={"min_replicas": 2}))
    for is_write in (False, True):
        beside.cluster.fail(status, lambda it, is_write=is_write: it.is_write is is_write, times=6)  # type: ignore[misc]
    async with beside.controller():
        await beside.until(made, lambda it: it.status is RUNNING)
        await beside.store.deployments.delete(made.id, beside.user, 0)
        beside.cluster.fail(status, lambda it: it.method == "DELETE", times=3)
        await beside.until_gone(made)
    assert beside.kinds() == {}


async def test_what_a_forced_delete_leaves_goes_later_and_nothing_of_another_platform_with_it(beside: Beside) -> None:
    made, other = await beside.deploy(), await beside.deploy(agent_id="other")
    labels = {MANAGED_BY: MANAGER, INSTANCE_LABEL: "another", "agent-platform/deployment": made.id}
    beside.cluster.put("v1", "services", {"metadata": {"name": "x", "namespace": NAMESPACE, "labels": labels}})
    async with beside.controller():
        for each in (made, other):
            await beside.until(each, lambda it: it.status is RUNNING)
    await beside.store.deployments.forget(made.id)

    async def is_collected() -> bool:
        names = {key[3] for key in beside.cluster.objects if key[1] in ("deployments", "services", "networkpolicies")}
        return names == {other.object_name, "x"}

    async with beside.controller():
        await wait_until(is_collected, 20)
        found = await beside.until(other, lambda it: it.status is RUNNING)
    assert found.rollout.ready_replicas == 1
