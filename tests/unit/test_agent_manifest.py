"""The manifest of an agent: what is taken, and each field wrong in turn with the path of what is wrong."""

from typing import Any

import pytest

from backplane.domain.agent_manifest import MANIFEST_CHARS, AccessTier, AgentManifest, parse_manifest
from backplane.errors import FAULTS_SHOWN, InvalidInput
from tests.deployments import MANIFEST, manifest, parsed

DEPLOYMENT = "spec.deployment"


def faults_of(value: Any, field: str = "") -> dict[str | None, str]:
    with pytest.raises(InvalidInput) as refused:
        parse_manifest(value, field)
    return {fault.field: fault.message for fault in refused.value.faults}


def test_a_manifest_is_read_with_its_defaults() -> None:
    read = parse_manifest(MANIFEST)
    assert (read.name, read.version, read.role, read.access_tier) == ("support", "1.2.0", "assistant", AccessTier.READ)
    assert (read.scaling.min_replicas, read.scaling.max_replicas, read.is_autoscaled) == (2, None, False)
    assert (read.cpu, read.memory, read.progress_deadline_seconds, read.auto_rollback) == ("500m", "512Mi", 600, False)
    health = read.health
    assert health.path == "/health"
    assert (health.liveness_delay, health.liveness_period) == (30, 10)
    assert (health.readiness_delay, health.readiness_period) == (10, 5)
    assert read.source == MANIFEST


def test_a_manifest_with_everything_is_the_same_after_it_was_stored() -> None:
    read = parsed(
        spec__deployment={
            "scaling": {"min_replicas": 1, "max_replicas": 5, "target_cpu_percent": 60},
            "resources": {"cpu": 2, "memory": "1.5Gi"},
            "command": ["/bin/agent"],
            "arguments": ["--fast"],
            "environment": {"LEVEL": "info"},
            "secrets": ["api-keys"],
            "egress": ["203.0.113.0/24", "2001:db8::/32"],
            "progress_deadline_seconds": 60,
            "auto_rollback": True,
        },
        spec__access_tier="tier_4_policy",
        spec__monitoring={"health_check": {"path": "/live", "liveness_delay_seconds": 5}},
    )
    assert AgentManifest.of_json(read.as_json()) == read
    assert (read.cpu, read.egress, read.health.liveness_delay) == ("2", ("203.0.113.0/24", "2001:db8::/32"), 5)


def test_extensions_hold_anything_and_stay_as_they_came() -> None:
    anything = {"vendor": {"deep": [1, {"er": None}], "prompt": "You are kind."}}
    read = parsed(extensions=anything, spec__extensions=anything)
    assert read.source["extensions"] == read.source["spec"]["extensions"] == anything


@pytest.mark.parametrize("version", ["ossa/v0.4.6", "ossa.io/v0.1.9", "ossa/v0.9", "ossa/v0.3.0-rc.1"])
def test_versions_that_are_taken(version: str) -> None:
    assert parsed(apiVersion=version)


@pytest.mark.parametrize(
    ("path", "wrong", "says"),
    [
        ("apiVersion", "ossa/v1.0", "ossa/v0.*"),
        ("apiVersion", "v1", "ossa.io/v0.*"),
        ("apiVersion", 4, "JSON string"),
        ("kind", "Pod", "'Agent'"),
        ("metadata", [], "object"),
        ("metadata.name", "Support", "small letters"),
        ("metadata.name", "a" * 64, "63"),
        ("metadata.version", "1.0+build", "label"),
        ("metadata.version", 1.0, "JSON string"),
        ("metadata.description", "a\0b", "NUL"),
        ("metadata.description", "a" * 2001, "2000"),
        ("metadata.owner", "team-a", "no such field"),
        ("spec.role", "You are kind.", "label"),
        ("spec.role", "", "label"),
        ("spec.role", "a" * 64, "label"),
        ("spec.access_tier", "tier_5", "tier_4_policy"),
        ("spec.llm", {}, "`extensions`"),
        (f"{DEPLOYMENT}.scaling.min_replicas", -1, "0"),
        (f"{DEPLOYMENT}.scaling.min_replicas", 10**9, "100"),
        (f"{DEPLOYMENT}.scaling.min_replicas", 1.5, "whole number"),
        (f"{DEPLOYMENT}.scaling.min_replicas", True, "whole number"),
        (f"{DEPLOYMENT}.scaling.min_replicas", "2", "whole number"),
        (f"{DEPLOYMENT}.scaling.max_replicas", 101, "100"),
        (f"{DEPLOYMENT}.scaling.max_replicas", 1, "min_replicas"),
        (f"{DEPLOYMENT}.scaling.target_cpu_percent", 70, "max_replicas"),
        (f"{DEPLOYMENT}.scaling.replicas", 2, "no such field"),
        (f"{DEPLOYMENT}.resources.cpu", "9m", "10m"),
        (f"{DEPLOYMENT}.resources.cpu", "65", "64"),
        (f"{DEPLOYMENT}.resources.cpu", "half", "500m"),
        (f"{DEPLOYMENT}.resources.cpu", "1e3", "500m"),
        (f"{DEPLOYMENT}.resources.cpu", "-1", "500m"),
        (f"{DEPLOYMENT}.resources.cpu", True, "JSON string"),
        (f"{DEPLOYMENT}.resources.memory", "15Mi", "16Mi"),
        (f"{DEPLOYMENT}.resources.memory", "2Ti", "1Ti"),
        (f"{DEPLOYMENT}.resources.memory", "512MB", "512Mi"),
        (f"{DEPLOYMENT}.resources.gpu", 1, "no such field"),
        (f"{DEPLOYMENT}.command", "sh", "list"),
        (f"{DEPLOYMENT}.command.0", 1, "JSON string"),
        (f"{DEPLOYMENT}.arguments.0", "a" * 4097, "4096"),
        (f"{DEPLOYMENT}.environment", [], "object"),
        (f"{DEPLOYMENT}.environment.1A", "x", "name of a variable"),
        (f"{DEPLOYMENT}.environment.PORT", "80", "leave it out"),
        (f"{DEPLOYMENT}.environment.A", 1, "JSON string"),
        (f"{DEPLOYMENT}.environment.A", "a\0", "NUL"),
        (f"{DEPLOYMENT}.environment.A", "a" * 8193, "8192"),
        (f"{DEPLOYMENT}.secrets.0", "Not_A_Secret", "name of a Secret"),
        (f"{DEPLOYMENT}.secrets", ["a", "a"], "once"),
        (f"{DEPLOYMENT}.progress_deadline_seconds", 29, "30"),
        (f"{DEPLOYMENT}.progress_deadline_seconds", 7201, "7200"),
        (f"{DEPLOYMENT}.auto_rollback", "yes", "true nor false"),
        ("spec.monitoring.health_check", "health", "begins with /"),
        ("spec.monitoring.health_check", "/a b", "no spaces"),
        ("spec.monitoring.health_check", "/" + "a" * 1000, "1000"),
        ("spec.monitoring.health_check", 5, "object"),
        ("spec.monitoring.health_check", {}, "missing"),
        ("spec.monitoring.metrics", True, "no such field"),
        ("extensions", [], "object"),
        ("status", {}, "no such field"),
    ],
)
def test_a_field_that_is_wrong_is_named_with_its_path(path: str, wrong: Any, says: str) -> None:
    first, *rest = path.replace(".0", "").split(".")
    value = manifest(**{"__".join([first, *rest]): [wrong] if path.endswith(".0") else wrong})
    found = faults_of(value)
    [(where, message)] = found.items()
    assert where in (path, f"{path}.path")
    assert message.startswith(f"{where}: ")
    assert says in message


@pytest.mark.parametrize(
    "path",
    [
        "apiVersion",
        "metadata",
        "metadata.name",
        "metadata.version",
        "spec",
        "spec.role",
        "spec.access_tier",
        "spec.deployment",
        "spec.deployment.scaling",
        "spec.deployment.scaling.min_replicas",
        "spec.deployment.resources",
        "spec.deployment.resources.cpu",
        "spec.deployment.resources.memory",
        "spec.monitoring",
        "spec.monitoring.health_check",
    ],
)
def test_a_field_that_is_missing_is_named(path: str) -> None:
    value = manifest()
    *above, name = path.split(".")
    part = value
    for step in above:
        part = part[step]
    del part[name]
    assert faults_of(value) == {path: f"{path}: it is missing; give it"}


@pytest.mark.parametrize("tier", ["tier_1_read", "tier_2_write_limited", "tier_3_write_elevated"])
def test_only_the_highest_tier_names_its_networks(tier: str) -> None:
    value = manifest(spec__access_tier=tier, spec__deployment__egress=["203.0.113.0/24"])
    assert list(faults_of(value)) == ["spec.deployment.egress"]


@pytest.mark.parametrize(
    ("network", "says"),
    [("10.0.0.1/8", "10.0.0.0/8"), ("example.org", "no network"), ("10.0.0.0/33", "no network"), ("10.1.2.3", "/32")],
)
def test_a_network_is_one_as_the_cluster_writes_it(network: str, says: str) -> None:
    value = manifest(spec__access_tier="tier_4_policy", spec__deployment__egress=[network])
    assert says in faults_of(value)["spec.deployment.egress.0"]


def test_an_autoscaler_leaves_one_replica() -> None:
    value = manifest(spec__deployment__scaling={"min_replicas": 0, "max_replicas": 5})
    assert list(faults_of(value)) == ["spec.deployment.scaling.min_replicas"]
    assert parsed(spec__deployment__scaling={"min_replicas": 0}).scaling.min_replicas == 0


@pytest.mark.parametrize("percent", [0, 101])
def test_an_autoscaler_aims_at_a_part_of_what_was_asked_for(percent: int) -> None:
    value = manifest(spec__deployment__scaling={"min_replicas": 1, "max_replicas": 5, "target_cpu_percent": percent})
    assert list(faults_of(value)) == ["spec.deployment.scaling.target_cpu_percent"]


def test_all_faults_are_found_at_once_below_the_given_field() -> None:
    value = manifest(
        apiVersion="v1",
        spec__role="two words",
        spec__deployment={"scaling": {"min_replicas": 5, "max_replicas": 2}, "egress": ["10.0.0.0/8"]},
        more=1,
    )
    assert set(faults_of(value, "manifest")) == {
        "manifest.apiVersion",
        "manifest.spec.role",
        "manifest.spec.deployment.resources",
        "manifest.spec.deployment.scaling.max_replicas",
        "manifest.spec.deployment.egress",
        "manifest.more",
    }


@pytest.mark.parametrize("value", [None, [], "text", 5, True])
def test_what_is_no_object_is_no_manifest(value: Any) -> None:
    assert list(faults_of(value)) == [None]


def test_a_manifest_is_as_large_as_that_and_no_larger() -> None:
    room = MANIFEST_CHARS - len(str(manifest(extensions={"a": ""})).replace(": ", ":").replace(", ", ","))
    assert parsed(extensions={"a": "x" * (room - 10)})
    assert "characters as JSON" in faults_of(manifest(extensions={"a": "x" * MANIFEST_CHARS}))[None]


def test_many_unknown_fields_are_refused_without_taking_long() -> None:
    assert len(faults_of({f"f{number}": 1 for number in range(3000)})) <= FAULTS_SHOWN
