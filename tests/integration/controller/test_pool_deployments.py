"""What the launcher of pools asks of a Kubernetes API server, as far as a script of answers can show it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backplane.domain.agents import Pool, PoolProcess
from backplane.errors import Unavailable
from controller.deletion_cost import ANNOTATION
from controller.pools.kubernetes import LABEL, DeploymentLauncher
from tests.integration.controller.test_cluster import CONFIG
from tests.scripted_api import NOTHING, ScriptedApi, answer, scripted_api

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POOL = Pool("devs", "developer", NOW)
DONE = answer(200, {})


def process(pod: str) -> PoolProcess:
    return PoolProcess(f"{pod}-1-ab", "devs", pod, 10, NOW, NOW, NOW)


def deployments(**replicas: int) -> bytes:
    items = [
        {"metadata": {"name": f"agent-{pool}", "labels": {LABEL: pool}}, "spec": {"replicas": count}}
        for pool, count in replicas.items()
    ]
    return answer(200, {"metadata": {}, "items": items})


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ScriptedApi]]:
    """`cluster(answer, …)`: an API server, whose credentials are in the environment."""
    with ExitStack() as stack:

        def that_answers(*answers: bytes) -> ScriptedApi:
            server = stack.enter_context(scripted_api(answers))
            file = tmp_path / "config"
            file.write_text(CONFIG.format(url=server.url))
            monkeypatch.setenv("KUBECONFIG", str(file))
            return server

        yield that_answers


async def test_replicas_that_have_not_entered_themselves_are_coming(cluster: Callable[..., ScriptedApi]) -> None:
    server, launcher = cluster(deployments(devs=3)), DeploymentLauncher("agents")
    try:
        assert await launcher.coming("devs", [process("a")]) == 2
        assert await launcher.coming("devs", [process(name) for name in "abcd"]) == 0
        assert await launcher.coming("others", []) == 0
    finally:
        await launcher.close()
    [looked] = server.requests  # the answer is used for some seconds
    assert looked.path.startswith("/apis/apps/v1/namespaces/agents/deployments?labelSelector=")


async def test_a_start_sets_the_replicas_of_the_pools_deployment(cluster: Callable[..., ScriptedApi]) -> None:
    server, launcher = cluster(deployments(devs=1), DONE), DeploymentLauncher("agents")
    try:
        await launcher.coming("devs", [])
        await launcher.start(POOL, 1, 2)
        assert await launcher.coming("devs", []) == 2
    finally:
        await launcher.close()
    scaled = server.requests[1]
    assert (scaled.method, scaled.path) == ("PATCH", "/apis/apps/v1/namespaces/agents/deployments/agent-devs/scale")
    assert json.loads(scaled.body) == {"spec": {"replicas": 2}}


async def test_the_pods_that_are_to_end_are_the_cheapest_before_the_replicas_are_fewer(
    cluster: Callable[..., ScriptedApi],
) -> None:
    server, launcher = cluster(deployments(devs=3), DONE), DeploymentLauncher("agents")
    try:
        await launcher.coming("devs", [])
        await launcher.end(POOL, [process("pod-2")], 2)
    finally:
        await launcher.close()
    marked, scaled = server.requests[1:]
    assert marked.path == "/api/v1/namespaces/agents/pods/pod-2/status"
    assert json.loads(marked.body)["metadata"]["annotations"] == {ANNOTATION: "-1"}
    assert json.loads(scaled.body) == {"spec": {"replicas": 2}}


async def test_a_pool_without_a_deployment_names_the_label_that_is_missing(cluster: Callable[..., ScriptedApi]) -> None:
    cluster(deployments(others=1))
    launcher = DeploymentLauncher("agents")
    try:
        await launcher.coming("devs", [])
        with pytest.raises(Unavailable, match=f"{LABEL}=devs"):
            await launcher.start(POOL, 1, 1)
    finally:
        await launcher.close()


async def test_a_right_that_is_missing_is_named(cluster: Callable[..., ScriptedApi]) -> None:
    cluster(deployments(devs=1), answer(403, {"kind": "Status", "reason": "Forbidden", "message": "no"}))
    launcher = DeploymentLauncher("agents")
    try:
        await launcher.coming("devs", [])
        with pytest.raises(Unavailable, match="patch deployments/scale in agents"):
            await launcher.start(POOL, 1, 2)
    finally:
        await launcher.close()


def pods(*statuses: dict[str, Any], **metadata: str) -> bytes:
    items = [{"metadata": {"name": "pod-1", **metadata}, "status": status} for status in statuses]
    return answer(200, {"metadata": {}, "items": items})


def container(*, restarts: int = 0, ready: bool = False, last: dict[str, Any] | None = None, **state: Any) -> Any:
    given = {"restartCount": restarts, "ready": ready, "state": state, "lastState": last or {}}
    return {"containerStatuses": [given]}


NO_NODE = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient cpu."}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (pods(), None),
        (pods({"conditions": [NO_NODE]}), "pod pod-1 has no node: 0/1 nodes: Insufficient cpu."),
        (
            pods(container(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"})),
            "pod pod-1: ImagePullBackOff: Back-off pulling image",
        ),
        (pods(container(waiting={"reason": "ContainerCreating"})), None),
        (pods(container(running={})), None),
        (
            pods(container(running={}, restarts=2, last={"terminated": {"exitCode": 1}})),
            "pod pod-1 was restarted 2 times: exit code 1; its log says why",
        ),
        (pods(container(running={}, restarts=2, ready=True)), None),
        (pods({"conditions": [NO_NODE]}, deletionTimestamp="2026-01-01T00:00:00Z"), None),
    ],
)
async def test_what_keeps_a_pod_from_running_is_reported_in_the_clusters_words(
    cluster: Callable[..., ScriptedApi], listed: bytes, expected: str | None
) -> None:
    server, launcher = cluster(deployments(devs=1), listed), DeploymentLauncher("agents")
    try:
        await launcher.coming("devs", [])
        assert await launcher.hindrance("devs") == expected
    finally:
        await launcher.close()
    assert server.requests[1].path == "/api/v1/namespaces/agents/pods?labelSelector=agent-platform/pool%3Ddevs"


async def test_a_deployment_that_gets_no_pods_says_why(cluster: Callable[..., ScriptedApi]) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    made = {"metadata": {"name": "agent-devs", "labels": {LABEL: "devs"}}, "spec": {"replicas": 1}}
    cluster(answer(200, {"metadata": {}, "items": [{**made, "status": {"conditions": [failure]}}]}))
    launcher = DeploymentLauncher("agents")
    try:
        await launcher.coming("devs", [])
        assert await launcher.hindrance("devs") == "the cluster makes no pod of agent-devs: exceeded quota"
    finally:
        await launcher.close()


async def test_an_api_server_that_refuses_is_asked_once_for_all_pools(cluster: Callable[..., ScriptedApi]) -> None:
    refused = answer(403, {"kind": "Status", "reason": "Forbidden", "message": "no"})
    server, launcher = cluster(refused), DeploymentLauncher("agents")
    try:
        for pool in ("devs", "testers"):
            with pytest.raises(Unavailable, match="list deployments in agents"):
                await launcher.coming(pool, [])
    finally:
        await launcher.close()
    assert len(server.requests) == 1


async def test_an_api_server_that_does_not_answer_keeps_the_pools_waiting_for_a_short_time_only(
    cluster: Callable[..., ScriptedApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.pools.kubernetes.LOOK_SECONDS", 0.0)
    cluster(NOTHING)
    launcher = DeploymentLauncher("agents")
    try:
        with pytest.raises(Unavailable, match="lists no Deployments"):
            await launcher.coming("devs", [])
    finally:
        await launcher.close()
