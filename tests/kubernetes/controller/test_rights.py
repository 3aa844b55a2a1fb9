"""What the controller may do to pods of the platform, on a real cluster and with the role of the manifests."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.client import ApiClient, ApiException, CoreV1Api, RbacAuthorizationV1Api

from controller.cluster import Cluster as ControllersCluster
from controller.deletion_cost import ANNOTATION
from tests.kubernetes.controller.conftest import Cluster

ACCESS = Path(__file__).parents[3] / "k8s/base/access.yaml"
OTHER_IMAGE = {"spec": {"containers": [{"name": "main", "image": "evil.example/image"}]}}


@pytest.fixture
async def as_controller(kubernetes: Cluster) -> Any:
    """The cluster as the controller sees it, with the role that the manifest gives it in the namespace `agents`."""
    namespace = kubernetes.namespace
    [role] = [
        document
        for document in yaml.safe_load_all(ACCESS.read_text())
        if (document["kind"], document["metadata"]["name"]) == ("Role", "agent-controller")
        and document["metadata"]["namespace"] == "agents"
    ]
    access: Any = RbacAuthorizationV1Api(kubernetes.own.client)
    await access.create_namespaced_role(namespace, {**role, "metadata": {"name": "agent-controller"}})
    binding = {
        "metadata": {"name": "agent-controller"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent-controller"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent-controller", "namespace": namespace}],
    }
    await access.create_namespaced_role_binding(namespace, binding)
    user = f"system:serviceaccount:{namespace}:agent-controller"
    async with ApiClient(kubernetes.own.client.configuration, "Impersonate-User", user) as client:
        yield client


async def test_the_controller_writes_the_deletion_cost(kubernetes: Cluster, as_controller: ApiClient) -> None:
    pod = await kubernetes.make_pod("worker", app="agent-worker")
    assert await ControllersCluster(as_controller).annotate_pod(kubernetes.namespace, pod, {ANNOTATION: "3"})
    assert await kubernetes.annotation(pod, ANNOTATION) == "3"


@pytest.mark.parametrize("way", ["patch_namespaced_pod", "delete_namespaced_pod", "read_namespaced_pod_log"])
async def test_the_controller_may_not_change_end_or_read_a_pod(
    kubernetes: Cluster, as_controller: ApiClient, way: str
) -> None:
    pod = await kubernetes.make_pod("worker", app="agent-worker")
    body = [OTHER_IMAGE] if way == "patch_namespaced_pod" else []
    with pytest.raises(ApiException) as refused:
        await getattr(CoreV1Api(as_controller), way)(pod, kubernetes.namespace, *body)
    assert refused.value.status == 403


async def test_another_image_in_a_pods_status_is_left_out(kubernetes: Cluster, as_controller: ApiClient) -> None:
    pod = await kubernetes.make_pod("worker", app="agent-worker")
    api: Any = CoreV1Api(as_controller)
    changed = await api.patch_namespaced_pod_status(pod, kubernetes.namespace, OTHER_IMAGE)
    assert [container.image for container in changed.spec.containers] == [kubernetes.image]
