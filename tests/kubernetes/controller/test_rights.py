"""What the controller may do to pods of the platform, on a real cluster and with the role of the manifests."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from controller.deletion_cost import ANNOTATION, write_cost
from tests.kubernetes.controller.conftest import Cluster

ACCESS = Path(__file__).parents[3] / "k8s/base/access.yaml"
OTHER_IMAGE = {"spec": {"containers": [{"name": "main", "image": "evil.example/image"}]}}


@pytest.fixture
async def as_controller(kubernetes: Cluster, kubeconfig: str, tmp_path: Path) -> AsyncIterator[ApiServer]:
    """Asks as the controller, with the role that the manifest gives it in the namespace `agents`."""
    namespace = kubernetes.namespace
    [role] = [
        document
        for document in yaml.safe_load_all(await asyncio.to_thread(ACCESS.read_text))
        if (document["kind"], document["metadata"]["name"]) == ("Role", "agent-controller")
        and document["metadata"]["namespace"] == "agents"
    ]
    rights = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    await kubernetes.api.call("POST", f"{rights}/roles", body={**role, "metadata": {"name": "agent-controller"}})
    binding = {
        "metadata": {"name": "agent-controller"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent-controller"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent-controller", "namespace": namespace}],
    }
    await kubernetes.api.call("POST", f"{rights}/rolebindings", body=binding)
    config: dict[str, Any] = yaml.safe_load(await asyncio.to_thread(Path(kubeconfig).read_text))
    for entry in config["users"]:
        entry["user"]["as"] = f"system:serviceaccount:{namespace}:agent-controller"
    file = tmp_path / "kubeconfig"
    await asyncio.to_thread(file.write_text, yaml.safe_dump(config))
    async with open_api_server(str(file)) as api:
        yield api


async def test_the_controller_writes_the_deletion_cost(kubernetes: Cluster, as_controller: ApiServer) -> None:
    pod = await kubernetes.make_pod("worker", app="agent-worker")
    await write_cost(as_controller, kubernetes.namespace, pod, "3")
    assert await kubernetes.annotation(pod, ANNOTATION) == "3"


async def test_the_cost_of_a_pod_that_is_gone_is_left_out(kubernetes: Cluster, as_controller: ApiServer) -> None:
    await write_cost(as_controller, kubernetes.namespace, "gone", "3")


@pytest.mark.parametrize(
    ("method", "path", "body"), [("PATCH", "", OTHER_IMAGE), ("DELETE", "", None), ("GET", "/log", None)]
)
async def test_the_controller_may_not_change_end_or_read_a_pod(
    kubernetes: Cluster, as_controller: ApiServer, method: str, path: str, body: Any
) -> None:
    pod = await kubernetes.make_pod("worker", app="agent-worker")
    with pytest.raises(ApiRefused) as refused:
        await as_controller.call(method, f"{kubernetes.pods_path}/{pod}{path}", body=body)
    assert refused.value.status == 403


async def test_another_image_in_a_pods_status_is_left_out(kubernetes: Cluster, as_controller: ApiServer) -> None:
    pod = await kubernetes.make_pod("worker", app="agent-worker")
    changed = await as_controller.call("PATCH", f"{kubernetes.pods_path}/{pod}/status", body=OTHER_IMAGE)
    assert [container["image"] for container in changed["spec"]["containers"]] == [kubernetes.image]
