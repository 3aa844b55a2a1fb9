"""What k8s/ promises, read as a cluster would read it, and checked against the current Kubernetes API."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from backplane.credentials import CREDENTIALS
from backplane.settings import GIB, Settings
from controller.pools.kubernetes import LABEL
from worker.sandbox.base import Limits
from worker.sandbox.kubernetes.manifest import JobSettings, manifest

PROJECT = Path(__file__).parents[2]
OVERLAYS = ("minimal", "production", "keda", "deployments")
ROLES = ("team-leader", "business-analyst", "developer", "tester")
POOLS = {f"agent-{name}-pool": f"{name.replace('-', '_')}_pool" for name in ROLES}
LAST_WORDS_SECONDS = 10
CURRENT = {
    "autoscaling/v2": "V2",
    "networking.k8s.io/v1": "V1",
    "policy/v1": "V1",
    "rbac.authorization.k8s.io/v1": "V1",
    "scheduling.k8s.io/v1": "V1",
    "apps/v1": "V1",
    "v1": "V1",
}
"""The groups of the Kubernetes API that are used, and how their models' names begin."""
OTHERS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
"""Of what is installed beside Kubernetes; their schemas are not here."""

SCALARS: dict[str, type | tuple[type, ...]] = {
    "bool": bool,
    "float": (int, float),
    "int": int,
    "object": object,
    "str": str,
}

Object = dict[str, Any]


def kubernetes_models() -> Any:
    """The models of the current API. To load them takes longer than all else here, and not every process needs them."""
    return import_module("kubernetes.client")


def build(folder: Path) -> list[Object]:
    """What kustomize makes of a folder, for the words that every kustomize since 2.0 understands; others are refused,
    for the one in kubectl 1.20 ignores them."""
    words = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "bases", "resources", "configMapGenerator", "generatorOptions"}
    assert set(words) <= known, f"{folder}: not understood by every kustomize: {set(words) - known}"
    objects = [made for base in words.get("bases", ()) for made in build((folder / base).resolve())]
    for file in words.get("resources", ()):
        objects += [document for document in yaml.safe_load_all((folder / file).read_text()) if document]
    options = words.get("generatorOptions", {})
    for generator in words.get("configMapGenerator", ()):
        data = dict(literal.split("=", 1) for literal in generator.get("literals", ()))
        for file in generator.get("files", ()):
            key, path = file.split("=", 1)
            data[key] = (folder / path).read_text()
        name = generator["name"]
        if not options.get("disableNameSuffixHash"):
            suffix = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:10]
            objects = json.loads(json.dumps(objects).replace(f'"{name}"', f'"{name}-{suffix}"'))
            name = f"{name}-{suffix}"
        metadata = {"name": name, "namespace": generator["namespace"], "labels": options.get("labels", {})}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return objects


@pytest.fixture(scope="module")
def overlays() -> dict[str, list[Object]]:
    return {name: build(PROJECT / "k8s" / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="module")
def production(overlays: dict[str, list[Object]]) -> list[Object]:
    return overlays["production"]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    found = [made for made in objects if made["kind"] == kind]
    assert found, f"no {kind} at all"
    return found


def named(objects: list[Object], kind: str, name: str, namespace: str = "agents") -> Object:
    (found,) = [
        made
        for made in of_kind(objects, kind)
        if made["metadata"]["name"] == name and made["metadata"].get("namespace") == namespace
    ]
    return found


def settings_of(objects: list[Object]) -> dict[str, str]:
    (found,) = [made for made in of_kind(objects, "ConfigMap") if made["metadata"]["name"].startswith("agent-settings")]
    data: dict[str, str] = found["data"]
    return data


def pod_of(deployment: Object) -> Object:
    pod: Object = deployment["spec"]["template"]["spec"]
    return pod


def containers_of(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def unknown_fields(value: Any, kind: str, where: str) -> Iterator[str]:
    """Paths in `value` that the type `kind` of the Kubernetes API does not have, or has otherwise."""
    if match := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        for number, item in enumerate(value):
            yield from unknown_fields(item, match[1], f"{where}[{number}]")
    elif match := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        for key, item in value.items():
            yield from unknown_fields(item, match[1], f"{where}.{key}")
    elif kind in SCALARS:
        if not isinstance(value, SCALARS[kind]):
            yield f"{where} is not {kind}"
    else:
        model = getattr(kubernetes_models(), kind)
        attributes = {name: attribute for attribute, name in model.attribute_map.items()}
        for key, item in value.items():
            if key not in attributes:
                yield f"{where}.{key}"
            else:
                yield from unknown_fields(item, model.openapi_types[attributes[key]], f"{where}.{key}")


def numbers_of(quantity: str | int) -> float:
    """A Kubernetes quantity in its unit."""
    match = re.fullmatch(r"([0-9.]+)(m|[KMGT]i)?", str(quantity))
    assert match is not None, quantity
    factors = {None: 1.0, "m": 0.001, "Ki": 1024.0, "Mi": 1024.0**2, "Gi": 1024.0**3, "Ti": 1024.0**4}
    return float(match[1]) * factors[match[2]]


# --- every object ---


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_current_kubernetes_api_knows_every_field(overlays: dict[str, list[Object]], overlay: str) -> None:
    wrong = []
    for made in overlays[overlay]:
        if made["apiVersion"] in OTHERS:
            continue
        kind = CURRENT[made["apiVersion"]] + made["kind"]
        wrong += list(unknown_fields(made, kind, f"{made['kind']} {made['metadata']['name']}"))

    assert wrong == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_current_kubernetes_api_misses_no_field(overlays: dict[str, list[Object]], overlay: str) -> None:
    api = kubernetes_models().ApiClient()
    for made in overlays[overlay]:
        if made["apiVersion"] not in OTHERS:
            # Raises ValueError where a field must be there and is not.
            api.deserialize(json.dumps(made), CURRENT[made["apiVersion"]] + made["kind"], "application/json")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_port_names_its_protocol(overlays: dict[str, list[Object]], overlay: str) -> None:
    """Lists of ports are merged by number and protocol. Without a protocol, a server of 1.20 refuses
    `kubectl apply --server-side`."""
    ports = [
        (f"{made['kind']} {made['metadata']['name']}", port)
        for made in overlays[overlay]
        if made["kind"] == "Service"
        for port in made["spec"]["ports"]
    ]
    for made in of_kind(overlays[overlay], "Deployment"):
        for container in containers_of(pod_of(made)):
            ports += [(f"Deployment {made['metadata']['name']}", port) for port in container.get("ports", ())]

    assert len(ports) == 13
    assert [where for where, port in ports if port.get("protocol") != "TCP"] == []


def test_the_checks_of_fields_find_one_too_many_and_one_too_few() -> None:
    pod = {"spec": {"containers": [{"name": "a", "readynessProbe": {}}]}}

    assert list(unknown_fields(pod, "V1Pod", "pod")) == ["pod.spec.containers[0].readynessProbe"]
    with pytest.raises(ValueError, match="selector"):
        kubernetes_models().ApiClient().deserialize('{"spec": {"template": {}}}', "V1Deployment", "application/json")


def test_the_minimal_overlay_asks_for_nothing_newer_than_1_20(overlays: dict[str, list[Object]]) -> None:
    versions = {made["apiVersion"] for made in overlays["minimal"]}

    assert versions <= set(CURRENT) - {"policy/v1", "autoscaling/v2"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_stands_there_twice(overlays: dict[str, list[Object]], overlay: str) -> None:
    ids = [(made["kind"], made["metadata"].get("namespace"), made["metadata"]["name"]) for made in overlays[overlay]]

    assert len(ids) == len(set(ids))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_builds_the_same(overlays: dict[str, list[Object]], overlay: str) -> None:
    command = ["kubectl", "kustomize", str(PROJECT / "k8s" / "overlays" / overlay)]
    built = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    def comparable(objects: list[Object]) -> list[str]:
        # The suffix is computed by kustomize in its own way.
        texts = (
            re.sub(r"(agent-settings|agent-site)-\w+", r"\1", json.dumps(made, sort_keys=True)) for made in objects
        )
        return sorted(text.replace('"labels": {}, ', "") for text in texts)

    assert comparable(list(yaml.safe_load_all(built))) == comparable(overlays[overlay])


# --- settings ---


def test_every_setting_of_the_config_map_is_one_and_fits(
    production: list[Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    values = settings_of(production)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # no .env of a developer

    assert {name.lower() for name in values} <= set(Settings.model_fields)
    assert Settings().sandbox == "kubernetes"


def test_no_secret_is_in_a_config_map(production: list[Object]) -> None:
    secret = {name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr}

    assert secret & set(settings_of(production)) == set()
    assert not [made for made in production if made["kind"] == "Secret"]


def test_every_process_reads_settings_then_the_sites_own_then_credentials(production: list[Object]) -> None:
    for deployment in of_kind(production, "Deployment"):
        for container in containers_of(pod_of(deployment)):
            settings, site = [source for source in container["envFrom"] if "configMapRef" in source]
            assert settings["configMapRef"]["name"].startswith("agent-settings-")
            assert site == {"configMapRef": {"name": "agent-site", "optional": True}}
            # What stands in `env` goes before what `envFrom` brings.
            assert {source["valueFrom"]["secretKeyRef"]["name"] for source in container["env"]} == {"agent-credentials"}


def test_every_process_gets_the_credentials_that_it_needs_and_no_others(production: list[Object]) -> None:
    for name, process in {"api": "api", "worker": "worker", "controller": "controller", "jobs": "controller"}.items():
        [container] = pod_of(named(production, "Deployment", f"agent-{name}"))["containers"]
        given = {source["name"].lower() for source in container["env"]} & set(CREDENTIALS)
        # Jobs are a controller that rents no machines.
        of_machines = {"vastai_api_key", "gpu_token_secret", "gpu_static_key", "gpu_router_token"}
        needed = {credential for credential, processes in CREDENTIALS.items() if process in processes}

        assert given == needed - (of_machines if name == "jobs" else set())
        assert all(source["valueFrom"]["secretKeyRef"]["key"] == source["name"] for source in container["env"])


def test_only_workers_get_the_keys_of_further_model_servers(production: list[Object]) -> None:
    given = {
        made["metadata"]["name"]
        for made in of_kind(production, "Deployment")
        for container in containers_of(pod_of(made))
        for source in container["envFrom"]
        if "secretRef" in source
    }

    assert given == {"agent-worker", *POOLS}


def test_the_migration_gets_the_database_and_nothing_else(production: list[Object]) -> None:
    [migration] = pod_of(named(production, "Deployment", "agent-api"))["initContainers"]

    assert [source["name"] for source in migration["env"]] == ["DATABASE_URL"]


# --- pods ---


def test_every_pod_keeps_to_the_restricted_standard(production: list[Object]) -> None:
    for deployment in of_kind(production, "Deployment"):
        pod = pod_of(deployment)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
        for container in containers_of(pod):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_both_namespaces_enforce_the_restricted_standard(production: list[Object]) -> None:
    for namespace in of_kind(production, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_worker_has_the_limits_that_are_promised(production: list[Object]) -> None:
    (container,) = pod_of(named(production, "Deployment", "agent-worker"))["containers"]

    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}


def test_a_worker_may_drain_before_it_is_killed(production: list[Object]) -> None:
    pod = pod_of(named(production, "Deployment", "agent-worker"))
    grace = float(settings_of(production)["WORKER_GRACE_SECONDS"])

    assert pod["terminationGracePeriodSeconds"] >= grace + LAST_WORDS_SECONDS


def test_a_controller_may_end_what_it_sends_before_it_is_killed(production: list[Object]) -> None:
    pod = pod_of(named(production, "Deployment", "agent-controller"))

    assert pod["terminationGracePeriodSeconds"] >= Settings().webhook_timeout_seconds + LAST_WORDS_SECONDS


def test_an_api_pod_is_out_of_the_proxies_before_it_ends_and_ends_before_it_is_killed(production: list[Object]) -> None:
    pod = pod_of(named(production, "Deployment", "agent-api"))
    _, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    graceful = re.search(r'"--timeout-graceful-shutdown", "(\d+)"', (PROJECT / "Dockerfile").read_text())
    assert graceful is not None

    assert int(seconds) >= 5
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + int(graceful[1]) + LAST_WORDS_SECONDS


def test_scratch_has_room_for_all_running_runs(production: list[Object]) -> None:
    pod = pod_of(named(production, "Deployment", "agent-worker"))
    (scratch,) = pod["volumes"]
    slots = int(settings_of(production)["WORKER_CONCURRENCY"])

    assert numbers_of(scratch["emptyDir"]["sizeLimit"]) >= slots * Settings().workspace_max_bytes


def test_a_rollout_takes_no_api_pod_away_before_another_is_ready(production: list[Object]) -> None:
    deployment = named(production, "Deployment", "agent-api")

    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    (container,) = pod_of(deployment)["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_applying_again_keeps_the_number_of_workers(overlays: dict[str, list[Object]], overlay: str) -> None:
    assert "replicas" not in named(overlays[overlay], "Deployment", "agent-worker")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_pool_that_comes_along_has_a_deployment_that_the_controller_finds_and_scales(
    overlays: dict[str, list[Object]], overlay: str
) -> None:
    for name, pool in POOLS.items():
        deployment = named(overlays[overlay], "Deployment", name)
        template = deployment["spec"]["template"]
        [container] = pod_of(deployment)["containers"]
        assert deployment["metadata"]["labels"][LABEL] == template["metadata"]["labels"][LABEL] == pool
        assert deployment["spec"]["selector"]["matchLabels"] == {LABEL: pool}
        assert container["command"] == ["python", "-m", "worker.pool", pool]
        assert "replicas" not in deployment["spec"]


def test_a_process_of_a_pool_is_run_as_a_worker_is(production: list[Object]) -> None:
    def as_a_worker(deployment: Object) -> Object:
        pod = {**pod_of(deployment), "topologySpreadConstraints": None}
        [container] = pod["containers"]
        return {**pod, "containers": [{**container, "name": None, "command": None}]}

    worker = as_a_worker(named(production, "Deployment", "agent-worker"))
    assert all(as_a_worker(named(production, "Deployment", name)) == worker for name in POOLS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_points_at_something_finds_it(overlays: dict[str, list[Object]], overlay: str) -> None:
    objects = overlays[overlay]
    templates = {made["metadata"]["name"]: made["spec"]["template"] for made in of_kind(objects, "Deployment")}
    accounts = {made["metadata"]["name"] for made in of_kind(objects, "ServiceAccount")}
    ports = {
        name: {port["name"] for c in t["spec"]["containers"] for port in c.get("ports", ())}
        for name, t in templates.items()
    }

    def selected(labels: dict[str, str]) -> list[str]:
        return [n for n, t in templates.items() if labels.items() <= t["metadata"]["labels"].items()]

    for deployment in of_kind(objects, "Deployment"):
        name = deployment["metadata"]["name"]
        assert selected(deployment["spec"]["selector"]["matchLabels"]) == [name]
        pod = pod_of(deployment)
        # A pod without an account of its own gets no token of the cluster.
        account = pod.get("serviceAccountName")
        assert account in accounts if account else pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            probe = container["livenessProbe"]
            assert probe["httpGet"]["port"] in ports[name] if "httpGet" in probe else probe["exec"]["command"]
    for service in of_kind(objects, "Service"):
        names = selected(service["spec"]["selector"])
        assert names == (list(POOLS) if service["metadata"]["name"] == "agent-pool" else [service["metadata"]["name"]])
        assert all({port["targetPort"] for port in service["spec"]["ports"]} <= ports[name] for name in names)
    for made in objects:
        if made["kind"] == "PodDisruptionBudget":
            assert selected(made["spec"]["selector"]["matchLabels"]) == [made["metadata"]["name"]]
        if made["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            assert made["spec"]["scaleTargetRef"]["name"] in templates


def test_whoever_scrapes_finds_the_metrics_of_every_process(production: list[Object]) -> None:
    """Each pod with a port for metrics is behind a Service that the ServiceMonitor selects."""
    (monitor,) = of_kind(production, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [made for made in of_kind(production, "Service") if wanted <= made["metadata"]["labels"].items()]
    selectors = [made["spec"]["selector"].items() for made in services]

    for deployment in of_kind(production, "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"].items()
        assert any(selector <= labels for selector in selectors), deployment["metadata"]["name"]


def test_the_deletion_cost_is_set_on_workers_and_on_nothing_else(production: list[Object]) -> None:
    label, _, value = settings_of(production)["POD_DELETION_COST_SELECTOR"].partition("=")
    named = [
        made["metadata"]["name"]
        for made in of_kind(production, "Deployment")
        if made["spec"]["template"]["metadata"]["labels"].get(label) == value
    ]

    assert named == ["agent-worker"]


# --- rights, quotas, network ---


def test_each_account_has_the_verbs_that_its_process_uses_and_no_more(production: list[Object]) -> None:
    def rights(name: str, namespace: str) -> dict[str, set[str]]:
        role = named(production, "Role", name, namespace)
        return {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}

    assert rights("agent-worker", "agents-tools") == {
        "jobs": {"create", "get", "list", "watch", "patch", "delete"},
        "pods": {"list", "watch", "patch"},
        "pods/exec": {"get", "create"},
        "events": {"list"},
    }
    assert rights("agent-controller", "agents-tools") == {"jobs": {"list", "delete"}, "pods": {"list"}}
    in_tools = named(production, "Role", "agent-controller", "agents-tools")["rules"]
    assert [rule["apiGroups"] for rule in in_tools if rule["resources"] == ["pods"]] == [["metrics.k8s.io"]]
    assert rights("agent-controller", "agents") == {
        "pods": {"list"},
        "pods/status": {"patch"},
        "deployments": {"list"},
        "deployments/scale": {"patch"},
    }
    assert len(of_kind(production, "Role")) == 3
    assert not [made for made in production if made["kind"].startswith("ClusterRole")]


def test_the_api_has_no_token_of_the_cluster(production: list[Object]) -> None:
    bound = {s["name"] for made in of_kind(production, "RoleBinding") for s in made["subjects"]}

    assert pod_of(named(production, "Deployment", "agent-api"))["automountServiceAccountToken"] is False
    assert "agent-api" not in bound


def test_sandboxes_may_talk_to_nobody(production: list[Object]) -> None:
    policies = [
        made for made in of_kind(production, "NetworkPolicy") if made["metadata"]["namespace"] == "agents-tools"
    ]

    assert [made["spec"] for made in policies] == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]


def test_what_no_policy_names_is_closed_in_the_platforms_namespace(production: list[Object]) -> None:
    spec = named(production, "NetworkPolicy", "nothing")["spec"]

    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_no_policy_lets_a_pod_reach_the_clouds_metadata(production: list[Object]) -> None:
    metadata = ip_address("169.254.169.254")
    blocks = [
        to["ipBlock"]
        for made in of_kind(production, "NetworkPolicy")
        for rule in made["spec"].get("egress", ())
        for to in rule["to"]
        if "ipBlock" in to
    ]

    assert any(metadata in ip_network(block["cidr"]) for block in blocks)
    for block in blocks:
        if metadata in ip_network(block["cidr"]):
            assert any(metadata in ip_network(kept_out) for kept_out in block["except"])


def test_the_largest_sandbox_fits_the_namespaces_limits(production: list[Object]) -> None:
    settings = Settings()
    largest = Limits(
        wall_seconds=1,
        memory_bytes=settings.sandbox_memory_max_bytes,
        cpus=settings.sandbox_cpus_max,
        cpu_seconds=1,
        processes=1,
        file_bytes=settings.sandbox_file_bytes,
        disk_bytes=settings.workspace_max_bytes,
        files=settings.workspace_max_files,
    )
    common = JobSettings("agents-tools", "image", ("true",), "worker", 1, settings.sandbox_tmp_bytes)
    (container,) = manifest("name", {}, largest, common, 1.0)["spec"]["template"]["spec"]["containers"]
    (limits,) = named(production, "LimitRange", "agent-tools", "agents-tools")["spec"]["limits"]

    for resource, quantity in container["resources"]["limits"].items():
        assert numbers_of(quantity) <= numbers_of(limits["max"][resource]), resource


def test_a_user_of_the_standard_tier_cannot_use_up_the_quota_alone(production: list[Object]) -> None:
    quota = named(production, "ResourceQuota", "agent-tools", "agents-tools")["spec"]["hard"]
    settings = settings_of(production)
    at_once = int(settings["USER_CONCURRENCY_STANDARD"])

    assert at_once * float(settings["SANDBOX_CPUS_MAX"]) <= numbers_of(quota["limits.cpu"]) / 2
    assert at_once * float(settings["SANDBOX_MEMORY_MAX_BYTES"]) / GIB <= numbers_of(quota["limits.memory"]) / GIB / 2


def test_metrics_are_not_on_the_public_host(production: list[Object]) -> None:
    (rule,) = named(production, "Ingress", "agent-api")["spec"]["rules"]

    for path in rule["http"]["paths"]:
        assert not "/metrics".startswith(path["path"]), path["path"]


def test_the_ingress_neither_buffers_streams_nor_cuts_them_between_heartbeats(production: list[Object]) -> None:
    annotations = named(production, "Ingress", "agent-api")["metadata"]["annotations"]
    nginx = "nginx.ingress.kubernetes.io/"

    assert annotations[nginx + "proxy-buffering"] == "off"
    assert int(annotations[nginx + "proxy-read-timeout"]) > 10 * Settings().stream_heartbeat_seconds


# --- monitoring ---


def test_rules_and_dashboards_name_metrics_that_exist(production: list[Object]) -> None:
    sources = [PROJECT / f"{folder}/metrics.py" for folder in ("app", "worker", "controller", "controller/containers")]
    sources += [PROJECT / "controller/gpus/metrics.py", PROJECT / "backplane/process/own_use.py"]
    metrics = {name for source in sources for name in re.findall(r'"(agent_[a-z_]+)"', source.read_text())}
    rules = json.dumps(named(production, "PrometheusRule", "agent-platform")["spec"])
    recorded = set(re.findall(r'"record": "(\w+)"', rules))
    scaled = json.dumps(of_kind(production, "HorizontalPodAutoscaler"))
    dashboards = named(production, "ConfigMap", "agent-dashboard")["data"]
    used = set(re.findall(r"\bagent_[a-z_]+", rules + "".join(dashboards.values()) + scaled))

    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in used} <= metrics | recorded


def test_each_dashboard_is_whole_and_has_a_name_of_its_own(production: list[Object]) -> None:
    found = [json.loads(text) for text in named(production, "ConfigMap", "agent-dashboard")["data"].values()]
    assert sorted(one["uid"] for one in found) == ["agent-platform", "agent-platform-use"]
    for one in found:
        assert len({panel["id"] for panel in one["panels"]}) == len(one["panels"])
        assert all(target["expr"] for panel in one["panels"] for target in panel.get("targets", []))


def test_the_alert_of_a_full_queue_comes_before_runs_are_refused(production: list[Object]) -> None:
    groups = named(production, "PrometheusRule", "agent-platform")["spec"]["groups"]
    (rule,) = [rule for group in groups for rule in group["rules"] if rule.get("alert") == "AgentQueueNearlyFull"]
    most = int(settings_of(production).get("QUEUE_MAX_WAITING_ALL", Settings().queue_max_waiting_all))

    assert most / 2 < int(rule["expr"].rpartition("> ")[2]) < most * 0.7
    assert f"QUEUE_MAX_WAITING_ALL ({most})" in rule["annotations"]["summary"]


def test_keda_looks_at_every_list_of_waiting_runs(overlays: dict[str, list[Object]]) -> None:
    scaled = named(overlays["keda"], "ScaledObject", "agent-worker")["spec"]
    lists = {trigger["metadata"]["listName"] for trigger in scaled["triggers"]}
    names = {trigger["name"] for trigger in scaled["triggers"]}

    assert lists == {"jobs:pending", "jobs:pending:critical", "jobs:pending:high", "jobs:pending:low"}
    assert set(scaled["advanced"]["scalingModifiers"]["formula"].split(" + ")) == names
