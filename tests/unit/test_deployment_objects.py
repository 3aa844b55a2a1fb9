"""What a deployment is in a cluster: its objects, what they promise, and what differs from them."""

import copy
import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from backplane.domain.deployments import Deployment
from controller.deployments.kubernetes.drift import drift_of
from controller.deployments.kubernetes.objects import (
    CONTENT,
    ClusterRules,
    Declared,
    declared_objects,
    namespace_object,
    secrets_digest_of,
)
from controller.deployments.kubernetes.target import server_kinds
from tests.deployed_agents import ID, agent_manifest, deployment_of, revision_of

RULES = ClusterRules("f" * 32, "agents")
KINDS = server_kinds({"policy/v1", "autoscaling/v2"})
SCALED = {"min_replicas": 2, "max_replicas": 5, "target_cpu_percent": 70}

Json = dict[str, Any]


def declared(deployment: Deployment, secrets: str = "") -> Declared:
    return declared_objects(deployment, RULES, KINDS, secrets)


def one(deployment: Deployment, kind: str) -> Json | None:
    return next((found for _, found in declared(deployment).objects if found["kind"] == kind), None)


def made(deployment: Deployment) -> Json:
    found = one(deployment, "Deployment")
    assert found is not None
    return found


def of(**manifest: Any) -> Deployment:
    return deployment_of(revision_of(agent_manifest(**manifest)))


def content(found: Declared) -> str:
    return str(found.objects[-1][1]["spec"]["template"]["metadata"]["annotations"][CONTENT])


def policy(tier: str, **deployment: Any) -> Json:
    found = one(of(tier=tier, **deployment), "NetworkPolicy")
    assert found is not None
    spec: Json = found["spec"]
    return spec


def test_every_object_says_whose_it_is() -> None:
    objects = declared(deployment_of(replicas=2)).objects
    assert [kind.name for kind, _ in objects] == [
        "ServiceAccount", "NetworkPolicy", "Service", "PodDisruptionBudget", "Deployment",
    ]  # fmt: skip
    for _, found in objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "agent-platform"
        assert labels["agent-platform/instance"] == RULES.platform_id
    labels = made(deployment_of())["spec"]["template"]["metadata"]["labels"]
    assert {name: labels[name] for name in ("app", "version", "role", "tier")} == {
        "app": "greeter", "version": "1.0.0", "role": "helper", "tier": "tier_1_read",
    }  # fmt: skip
    assert labels["agent-platform/deployment"] == ID


def test_a_pod_listens_is_probed_and_limited_as_the_manifest_says() -> None:
    [container] = made(of(command=["serve"], arguments=["-v"]))["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 3000, "protocol": "TCP"}]
    assert container["livenessProbe"]["initialDelaySeconds"] == 30
    assert container["livenessProbe"]["periodSeconds"] == 10
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["cpu"] == "50m"
    assert (container["command"], container["args"]) == (["serve"], ["-v"])
    assert {"name": "PORT", "value": "3000"} in container["env"]


def test_a_pod_fits_the_strictest_level_of_pod_security() -> None:
    pod = made(deployment_of())["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    labels = namespace_object("x", RULES)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_single_replica_has_no_disruption_budget() -> None:
    assert one(deployment_of(replicas=1), "PodDisruptionBudget") is None
    budget = one(deployment_of(replicas=2), "PodDisruptionBudget")
    assert budget is not None
    assert budget["spec"]["maxUnavailable"] == 1


def test_the_number_of_replicas_is_left_to_an_autoscaler() -> None:
    scaled = deployment_of(revision_of(agent_manifest(scaling=SCALED)), replicas=None)
    assert "replicas" not in made(scaled)["spec"]
    autoscaler = one(scaled, "HorizontalPodAutoscaler")
    assert autoscaler is not None
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (2, 5)
    assert autoscaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    assert made(deployment_of(replicas=3))["spec"]["replicas"] == 3
    assert one(deployment_of(), "HorizontalPodAutoscaler") is None


@pytest.mark.parametrize(
    ("versions", "budget", "autoscaler"),
    [
        ({"policy/v1", "autoscaling/v2", "autoscaling/v1"}, "policy/v1", "autoscaling/v2"),
        ({"policy/v1beta1", "autoscaling/v2beta2", "autoscaling/v1"}, "policy/v1beta1", "autoscaling/v2beta2"),
        ({"policy/v1beta1", "autoscaling/v1"}, "policy/v1beta1", "autoscaling/v1"),
    ],
)
def test_versions_of_objects_are_those_that_the_server_has(versions: set[str], budget: str, autoscaler: str) -> None:
    kinds = server_kinds(versions)
    assert (kinds.budget.api, kinds.autoscaler.api) == (budget, autoscaler)
    scaled = deployment_of(revision_of(agent_manifest(scaling=SCALED)), replicas=None)
    objects = {kind.name: found for kind, found in declared_objects(scaled, RULES, kinds, "").objects}
    assert objects["HorizontalPodAutoscaler"]["apiVersion"] == autoscaler


def test_new_pods_start_for_what_was_declared_for_them_and_for_nothing_else() -> None:
    before = declared(deployment_of())
    assert content(declared(deployment_of())) == content(before)
    assert content(declared(deployment_of(replicas=3))) == content(before)
    assert content(declared(deployment_of(revision_of(agent_manifest(), 2)))) == content(before)
    assert content(declared(deployment_of(revision_of(agent_manifest(), restarted=1)))) != content(before)
    assert content(declared(of(environment={"A": "1"}))) != content(before)
    assert content(declared(deployment_of(), "another secret")) != content(before)


def test_the_digest_of_all_objects_changes_with_each_of_them() -> None:
    digests = [
        declared(found).digest
        for found in (
            deployment_of(),
            deployment_of(replicas=2),
            deployment_of(revision_of(agent_manifest(), 2)),
            of(tier="tier_2_write_limited"),
        )
    ]
    assert len(set(digests)) == 4


def test_a_secret_counts_with_its_content() -> None:
    first = secrets_digest_of([("keys", {"A": "MQ=="})])
    assert secrets_digest_of([("keys", {"A": "MQ=="})]) == first
    assert len({first, secrets_digest_of([("keys", {"A": "Mg=="})]), secrets_digest_of([("keys", None)])}) == 3
    [container] = made(of(secrets=["keys"]))["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_the_first_tier_reaches_name_servers_alone() -> None:
    [names] = policy("tier_1_read")["egress"]
    assert {port["port"] for port in names["ports"]} == {53}


def test_the_second_tier_reaches_the_api_and_public_addresses() -> None:
    _, api, public = policy("tier_2_write_limited")["egress"]
    assert api["to"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "agent-api"}}
    blocks = [block["ipBlock"] for block in public["to"]]

    def reaches(address: str) -> bool:
        found = ip_address(address)
        return any(
            found in ip_network(block["cidr"]) and not any(found in ip_network(out) for out in block["except"])
            for block in blocks
        )

    assert all(map(reaches, ("1.1.1.1", "2606:4700::1111")))
    private = ("10.1.2.3", "192.168.1.1", "172.20.0.1", "169.254.169.254", "127.0.0.1", "100.64.0.1", "fd00:ec2::254")
    assert not any(map(reaches, private))


def test_the_third_tier_reaches_pods_too_and_the_fourth_what_it_names() -> None:
    assert {"namespaceSelector": {}} in policy("tier_3_write_elevated")["egress"][-1]["to"]
    exact = policy("tier_4_policy", egress=["203.0.113.0/24"])["egress"]
    assert [rule["to"] for rule in exact[1:]] == [[{"ipBlock": {"cidr": "203.0.113.0/24"}}]]
    assert len(policy("tier_4_policy")["egress"]) == 1


@pytest.mark.parametrize("tier", ["tier_1_read", "tier_2_write_limited", "tier_3_write_elevated", "tier_4_policy"])
def test_each_tier_is_reached_from_the_platform_and_its_own_namespace_at_its_port(tier: str) -> None:
    [rule] = policy(tier)["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": "http"}]
    assert {"podSelector": {}} in rule["from"]
    assert len(rule["from"]) == 2


def test_nothing_is_declared_while_no_revision_may_run() -> None:
    assert declared(replace(deployment_of(), effective=None)).objects == ()


def test_what_somebody_changed_is_named_with_both_values() -> None:
    wanted = made(deployment_of(replicas=2))
    live = copy.deepcopy(wanted)
    live["metadata"] |= {"uid": "1", "generation": 4}
    live["spec"]["template"]["spec"] |= {"dnsPolicy": "ClusterFirst"}
    assert list(drift_of(wanted, live)) == []
    live["spec"]["replicas"] = 5
    [container] = live["spec"]["template"]["spec"]["containers"]
    container["image"] = "other"
    container["env"].append({"name": "DEBUG", "value": "1"})
    assert list(drift_of(wanted, live)) == [
        "Deployment spec.template.spec.containers[agent].image: wanted agents/greeter:1, found other",
        "Deployment spec.template.spec.containers[agent].env[DEBUG]: wanted nothing, found "
        "{'name': 'DEBUG', 'value': '1'}",
        "Deployment spec.replicas: wanted 2, found 5",
    ]


def test_the_same_amount_in_another_notation_is_no_drift() -> None:
    wanted = made(deployment_of())
    live = copy.deepcopy(wanted)
    [container] = live["spec"]["template"]["spec"]["containers"]
    container["resources"]["limits"] |= {"cpu": "0.05", "memory": "65536Ki"}
    assert list(drift_of(wanted, live)) == []
    container["resources"]["limits"]["memory"] = "65Mi"
    assert len(list(drift_of(wanted, live))) == 1


def expanded(text: str, variables: dict[str, str]) -> str:
    """As a kubelet does it: `$$` is one `$`, `$(NAME)` the variable's value where there is one."""
    return re.sub(r"\$(\$|\((.*?)\))", lambda found: _value(found, variables), text)


def _value(found: re.Match[str], variables: dict[str, str]) -> str:
    return "$" if found[1] == "$" else variables.get(found[2], found[0])


@pytest.mark.parametrize("value", ["$(A)", "$$(A)", "$$$(A)", "a$b", "$", "$$", "$(", "$(A", "100 $", "no dollar"])
def test_a_value_arrives_in_a_pod_as_its_user_wrote_it(value: str) -> None:
    deployment = of(environment={"A": "expanded", "B": value}, command=["sh", value], arguments=[value])
    container = made(deployment)["spec"]["template"]["spec"]["containers"][0]
    given = {one["name"]: one["value"] for one in container["env"]}
    assert expanded(given["B"], given) == value
    assert [expanded(word, given) for word in container["command"]] == ["sh", value]
    assert [expanded(word, given) for word in container["args"]] == [value]
