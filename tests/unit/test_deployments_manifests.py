"""An installation in which users deploy agents: the right of the controller, the setting, the way to replicas."""

import pytest

from backplane.domain.deployments import PORT
from controller.deployments.kubernetes.objects import MANAGED_BY, MANAGER
from tests.unit.test_manifests import PROJECT, Object, build, containers_of, named, of_kind, pod_of


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return build(PROJECT / "k8s/overlays/deployments")


@pytest.mark.parametrize("name", ["agent-api", "agent-controller"])
def test_the_api_and_the_controller_deploy_to_the_cluster(objects: list[Object], name: str) -> None:
    pod = pod_of(named(objects, "Deployment", name))
    names = [
        source["configMapRef"]["name"]
        for container in containers_of(pod)
        for source in container.get("envFrom", ())
        if "configMapRef" in source
    ]
    [site] = [made for made in of_kind(objects, "ConfigMap") if made["metadata"]["name"].startswith("agent-site-")]
    assert site["metadata"]["name"] in names
    assert site["data"] == {"DEPLOY_TARGET": "kubernetes"}


def test_the_right_is_the_controllers_alone(objects: list[Object]) -> None:
    [bound] = [one for one in of_kind(objects, "ClusterRoleBinding") if one["roleRef"]["name"] == "agent-deployments"]
    assert bound["subjects"] == [{"kind": "ServiceAccount", "name": "agent-controller", "namespace": "agents"}]
    assert pod_of(named(objects, "Deployment", "agent-controller"))["serviceAccountName"] == "agent-controller"
    [role] = [one for one in of_kind(objects, "ClusterRole") if one["metadata"]["name"] == "agent-deployments"]
    everything = {word for rule in role["rules"] for part in ("apiGroups", "resources", "verbs") for word in rule[part]}
    assert "*" not in everything
    secrets = [rule["verbs"] for rule in role["rules"] if "secrets" in rule["resources"]]
    assert secrets == [["get"]]


def test_workers_reach_replicas_at_their_port_and_nothing_else_there(objects: list[Object]) -> None:
    policy = named(objects, "NetworkPolicy", "out-to-deployments")["spec"]
    [way] = policy["egress"]
    assert way["to"][0]["podSelector"]["matchLabels"] == {MANAGED_BY: MANAGER}
    assert way["ports"] == [{"protocol": "TCP", "port": PORT}]
    for name in ("agent-worker", "agent-team-leader-pool"):
        labels = named(objects, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] in policy["podSelector"]["matchExpressions"][0]["values"]
