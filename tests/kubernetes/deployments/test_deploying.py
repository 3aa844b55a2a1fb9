"""Deployments on a real cluster: rolled out, scaled, failed, gone back, changed by others, and deleted."""

import pytest

from backplane.domain.deployments import DeploymentEventType, DeploymentStatus, RevisionOutcome
from backplane.kubernetes.api import ApiRefused, open_api_server
from tests.deployed_agents import agent_manifest
from tests.kubernetes.deployments.conftest import Deploying, Json, serving
from tests.waiting import wait_until

RUNNING, FAILED, STOPPED = DeploymentStatus.RUNNING, DeploymentStatus.FAILED, DeploymentStatus.STOPPED


async def test_an_agent_is_deployed_scaled_and_deleted_without_a_trace(deploying: Deploying) -> None:
    async with deploying.controller():
        made = await deploying.deploy()
        found = await deploying.until(made, lambda it: it.current.outcome is RevisionOutcome.ROLLED_OUT)
        assert (found.status, found.reason) == (RUNNING, "")
        for replicas in (3, 1):
            await deploying.store.deployments.scale(made.id, replicas, deploying.user)
            found = await deploying.until_ready(made, replicas)
            assert found.status is RUNNING
        await deploying.store.deployments.scale(made.id, 0, deploying.user)
        await deploying.until(made, lambda it: it.status is STOPPED)
        await deploying.store.deployments.delete(made.id, deploying.user, 1)
        await deploying.until_gone(made)
        assert await deploying.objects(made) == []


async def test_an_image_that_cannot_be_pulled_is_told_in_the_nodes_words_and_taken_back(deploying: Deploying) -> None:
    async with deploying.controller():
        made = await deploying.deploy(serving(auto_rollback=True))
        await deploying.until(made, lambda it: it.status is RUNNING)
        await deploying.store.deployments.revise(made.id, deploying.user, image="localhost/none:1")
        found = await deploying.until(made, lambda it: it.current.number == 3 and it.status is RUNNING)
        assert found.current.image == made.current.image
        failed = (await deploying.store.deployments.revisions(made.id, 3, 1))[0]
        assert failed.outcome is RevisionOutcome.FAILED
        assert "localhost/none:1" in failed.outcome_reason
        assert DeploymentEventType.ROLLED_BACK in await deploying.events(made)


async def test_an_agent_that_ends_at_once_fails_with_its_last_words(deploying: Deploying) -> None:
    ends = agent_manifest(command=["python", "-c", "import sys; sys.exit('the key is missing')"])
    async with deploying.controller():
        made = await deploying.deploy(ends)
        found = await deploying.until(made, lambda it: it.status is FAILED)
        assert "the key is missing" in found.reason


async def test_a_changed_secret_starts_new_pods_and_nothing_else_does(deploying: Deploying) -> None:
    async with deploying.controller():
        first = await deploying.deploy()
        await deploying.until(first, lambda it: it.status is RUNNING)
        await deploying.make_secret("words", WORD="one")
        made = await deploying.deploy(serving(secrets=["words"]))
        await deploying.until(made, lambda it: it.status is RUNNING)

        async def printed(word: str) -> bool:
            lines = (await deploying.store.deployments.logs_after(made.id, 0, 1000)).lines
            return [line.text for line in lines].count(f"serving as {word}") == 1

        await deploying.until(made, lambda it: it.rollout.is_complete)
        generation = (await deploying.api.call("GET", deploying.path("deployments", made)))["metadata"]["generation"]
        await deploying.make_secret("words", WORD="two")
        await wait_until(lambda: printed("two"), 60)
        await deploying.until(made, lambda it: it.rollout.is_complete)
        after = (await deploying.api.call("GET", deploying.path("deployments", made)))["metadata"]["generation"]
        assert after == generation + 1
        other = await deploying.api.call("GET", deploying.path("deployments", first))
        assert other["metadata"]["generation"] == 1


async def test_what_others_change_is_shown_and_stays_until_the_next_revision(deploying: Deploying) -> None:
    async with deploying.controller():
        made = await deploying.deploy()
        await deploying.until(made, lambda it: it.status is RUNNING)
        path = deploying.path("deployments", made)
        await deploying.api.call("PATCH", path, body={"spec": {"replicas": 2}})
        found = await deploying.until(made, lambda it: it.rollout.drift and it.rollout.ready_replicas == 2)
        assert found.rollout.drift == ("Deployment spec.replicas: wanted 1, found 2",)
        assert (await deploying.events(made)).count(DeploymentEventType.DRIFTED) == 1
        await deploying.store.deployments.restart(made.id, deploying.user)
        await deploying.until(made, lambda it: not it.rollout.drift and it.rollout.ready_replicas == 1)


async def test_what_was_deleted_underneath_is_made_anew(deploying: Deploying) -> None:
    async with deploying.controller():
        made = await deploying.deploy()
        await deploying.until(made, lambda it: it.status is RUNNING)
        await deploying.api.call("DELETE", deploying.path("services", made, "/api/v1"))
        await deploying.until(made, lambda it: it.status is RUNNING and it.rollout.is_complete)
        await deploying.api.call("DELETE", f"/api/v1/namespaces/{deploying.namespace}")
        await deploying.until(made, lambda it: it.status is not RUNNING)
        await deploying.until(made, lambda it: it.status is RUNNING)
        assert f"services/{made.object_name}" in await deploying.objects(made)


async def test_an_object_of_somebody_else_is_named_and_left_as_it_is(deploying: Deploying) -> None:
    made = await deploying.deploy()
    await deploying.api.call("POST", "/api/v1/namespaces", body={"metadata": {"name": deploying.namespace}})
    labels = {"app.kubernetes.io/managed-by": "agent-platform", "agent-platform/instance": deploying.rules.platform_id}
    async with deploying.controller():
        found = await deploying.until(made, lambda it: it.status is FAILED)
        assert f"the namespace {deploying.namespace} is there already" in found.reason
        path = f"/api/v1/namespaces/{deploying.namespace}"
        theirs: Json = {"metadata": {"name": made.object_name, "labels": {"app.kubernetes.io/managed-by": "Helm"}}}
        theirs |= {"spec": {"ports": [{"port": 99}]}}
        await deploying.api.call("POST", f"{path}/services", body=theirs)
        await deploying.api.call("PATCH", path, body={"metadata": {"labels": labels}})
        await deploying.until(made, lambda it: "belongs to what calls itself Helm" in it.reason)
        service = await deploying.api.call("GET", deploying.path("services", made, "/api/v1"))
        assert service["spec"]["ports"][0]["port"] == 99
        await deploying.api.call("DELETE", deploying.path("services", made, "/api/v1"))
        await deploying.until(made, lambda it: it.status is RUNNING)


async def test_an_autoscaler_keeps_the_number_that_it_finds(deploying: Deploying) -> None:
    async with deploying.controller():
        made = await deploying.deploy()
        await deploying.until(made, lambda it: it.status is RUNNING)
        await deploying.store.deployments.scale(made.id, 3, deploying.user)
        await deploying.until(made, lambda it: it.rollout.is_complete and it.rollout.ready_replicas == 3)
        scaled = serving(scaling={"min_replicas": 2, "max_replicas": 4})
        await deploying.store.deployments.revise(made.id, deploying.user, manifest=scaled)
        found = await deploying.until(made, lambda it: it.current.number == 2 and it.status is RUNNING)
        assert found.rollout.replicas == 3
        live = await deploying.api.call("GET", deploying.path("deployments", made))
        await deploying.api.call("PATCH", deploying.path("deployments", made), body={"spec": {"replicas": 2}})
        found = await deploying.until(made, lambda it: it.rollout.is_complete and it.rollout.replicas == 2)
        assert (live["spec"]["replicas"], found.rollout.drift) == (3, ())
        await deploying.store.deployments.revise(made.id, deploying.user, manifest=serving())
        await deploying.until(made, lambda it: it.current.number == 3 and it.rollout.ready_replicas == 1)
        objects = await deploying.objects(made)
        assert not [name for name in objects if name.startswith("horizontal")]


async def test_a_name_that_the_cluster_refuses_fails_with_its_words(deploying: Deploying) -> None:
    async with deploying.controller():
        made = await deploying.deploy(serving(progress_deadline_seconds=600), image="UPPER/case:1")
        found = await deploying.until(made, lambda it: it.status is FAILED)
        assert "InvalidImageName" in found.reason


async def test_the_controller_may_not_read_what_it_does_not_need(deploying: Deploying) -> None:
    async with open_api_server(deploying.rights) as api:
        for method, path in (
            ("GET", "/api/v1/secrets"),
            ("DELETE", f"/api/v1/namespaces/{deploying.namespace}"),
            ("GET", "/api/v1/nodes"),
        ):
            with pytest.raises(ApiRefused) as refused:
                await api.call(method, path)
            assert refused.value.status == 403


async def test_a_value_arrives_as_its_user_wrote_it(deploying: Deploying) -> None:
    word = "$(PORT) $$(PORT) $PORT $$ $"
    async with deploying.controller():
        made = await deploying.deploy(serving(environment={"WORD": word}))
        await deploying.until(made, lambda it: it.status is RUNNING)

        async def is_printed() -> bool:
            lines = (await deploying.store.deployments.logs_after(made.id, 0, 100)).lines
            return f"serving as {word}" in [line.text for line in lines]

        await wait_until(is_printed, 60)
