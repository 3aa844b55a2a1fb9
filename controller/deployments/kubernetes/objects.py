"""What a deployment is in a cluster: the objects that are declared for it. A function of values alone.

All objects of a deployment have its name and its id as a label. The Deployment is the last one to be written, and has
the digest of all of them: a controller that was killed in between sees an old digest, and writes them again. The pod
template has a hash of what was declared for the pods and of the content of the Secrets that it names, so a changed
Secret starts new pods, and nothing else does.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backplane.domain.agent_manifest import AccessTier, AgentManifest
from backplane.domain.deployments import PORT, Deployment, Revision
from controller.deployments.kubernetes.network import network_policy_spec
from controller.deployments.target import replicas_wanted

Json = dict[str, Any]

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "agent-platform"
"""The value of that label, and the field manager of what is applied here."""
DEPLOYMENT_LABEL = "agent-platform/deployment"
INSTANCE_LABEL = "agent-platform/instance"
DECLARED = "agent-platform/declared"
REVISION = "agent-platform/revision"
CONTENT = "agent-platform/content"
CONTAINER = "agent"
USER_ID = 10001
"""As whom an agent runs, whatever its image says: never root."""
PROBE_TIMEOUT_SECONDS = 5
SCRATCH = "1Gi"
"""What a pod may write to its node's disk."""
GRACE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """Of objects in a namespace. `api`: group and version, as policy/v1."""

    name: str
    api: str
    plural: str

    @property
    def root(self) -> str:
        return "/api/v1" if self.api == "v1" else f"/apis/{self.api}"

    def path(self, namespace: str = "", name: str = "") -> str:
        within = f"/namespaces/{namespace}" if namespace else ""
        return f"{self.root}{within}/{self.plural}" + (f"/{name}" if name else "")


DEPLOYMENT = ObjectKind("Deployment", "apps/v1", "deployments")
REPLICA_SET = ObjectKind("ReplicaSet", "apps/v1", "replicasets")
POD = ObjectKind("Pod", "v1", "pods")
SERVICE = ObjectKind("Service", "v1", "services")
SERVICE_ACCOUNT = ObjectKind("ServiceAccount", "v1", "serviceaccounts")
NETWORK_POLICY = ObjectKind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")


@dataclass(frozen=True, slots=True)
class ServerKinds:
    """Those whose version depends on the server."""

    budget: ObjectKind
    autoscaler: ObjectKind


@dataclass(frozen=True, slots=True)
class ClusterRules:
    """`platform_id`: of this platform's database; two platforms may share a cluster. `namespace`: of its pods."""

    platform_id: str
    namespace: str


@dataclass(frozen=True, slots=True)
class Declared:
    """`objects`: with their kinds, in the order in which they are written."""

    objects: Sequence[tuple[ObjectKind, Json]]
    digest: str


@dataclass(frozen=True, slots=True)
class _Making:
    """What the objects are made of."""

    deployment: Deployment
    revision: Revision
    rules: ClusterRules

    @property
    def manifest(self) -> AgentManifest:
        return self.revision.manifest

    @property
    def labels(self) -> dict[str, str]:
        manifest = self.manifest
        return {
            "app": self.deployment.agent_id,
            "version": manifest.version,
            "role": manifest.role,
            "tier": manifest.access_tier.value,
            MANAGED_BY: MANAGER,
            DEPLOYMENT_LABEL: self.deployment.id,
            INSTANCE_LABEL: self.rules.platform_id,
        }

    @property
    def metadata(self) -> Json:
        return {
            "name": self.deployment.object_name,
            "namespace": self.deployment.namespace,
            "labels": self.labels,
        }

    @property
    def selector(self) -> Json:
        return {"matchLabels": {DEPLOYMENT_LABEL: self.deployment.id}}


def declared_objects(deployment: Deployment, rules: ClusterRules, kinds: ServerKinds, secrets_digest: str) -> Declared:
    """`secrets_digest`: of the content of the Secrets that the manifest names. There is none of these objects while no
    revision may run."""
    revision = deployment.effective
    if revision is None:
        return Declared((), "")
    making = _Making(deployment, revision, rules)
    scaling, replicas = revision.manifest.scaling, replicas_wanted(deployment)
    objects: list[tuple[ObjectKind, Json]] = [
        (SERVICE_ACCOUNT, _service_account(making)),
        (NETWORK_POLICY, _network_policy(making)),
        (SERVICE, _service(making)),
    ]
    if (scaling.max_replicas or 1 if replicas is None else replicas) > 1:
        objects.append((kinds.budget, _budget(making, kinds.budget)))
    if replicas is None:
        objects.append((kinds.autoscaler, _autoscaler(making, kinds.autoscaler)))
    made = _deployment(making, replicas, secrets_digest)
    digest = _digest([[one for _, one in objects], made, revision.number])
    made["metadata"]["annotations"] = {DECLARED: digest, REVISION: str(revision.number)}
    return Declared([*objects, (DEPLOYMENT, made)], digest)


def namespace_object(name: str, rules: ClusterRules) -> Json:
    """Its pods have to be as the strictest of the cluster's levels of pod security wants them."""
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    labels = {MANAGED_BY: MANAGER, INSTANCE_LABEL: rules.platform_id, **levels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def account_name(tier: AccessTier) -> str:
    return f"agent-{tier.value.replace('_', '-')}"


def secrets_digest_of(contents: Sequence[tuple[str, Mapping[str, str] | None]]) -> str:
    """Of names and data of Secrets; None: there is no such Secret."""
    return _digest([[name, dict(data) if data is not None else None] for name, data in contents])


def _service_account(making: _Making) -> Json:
    """One for all agents of a tier in the namespace, so that who runs the cluster can give rights to a tier."""
    tier = making.manifest.access_tier
    labels = {MANAGED_BY: MANAGER, INSTANCE_LABEL: making.rules.platform_id, "tier": tier.value}
    metadata = {"name": account_name(tier), "namespace": making.deployment.namespace, "labels": labels}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def _network_policy(making: _Making) -> Json:
    return {
        "apiVersion": NETWORK_POLICY.api,
        "kind": "NetworkPolicy",
        "metadata": making.metadata,
        "spec": {
            "podSelector": making.selector,
            **network_policy_spec(making.manifest, making.rules.namespace),
        },
    }


def _service(making: _Making) -> Json:
    port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": making.metadata,
        "spec": {"type": "ClusterIP", "selector": {DEPLOYMENT_LABEL: making.deployment.id}, "ports": [port]},
    }


def _budget(making: _Making, kind: ObjectKind) -> Json:
    """By what may be gone: a budget of what must be there would keep a node with the only pod from being drained."""
    return {
        "apiVersion": kind.api,
        "kind": kind.name,
        "metadata": making.metadata,
        "spec": {"maxUnavailable": 1, "selector": making.selector},
    }


def _autoscaler(making: _Making, kind: ObjectKind) -> Json:
    scaling = making.manifest.scaling
    spec: Json = {
        "scaleTargetRef": {"apiVersion": DEPLOYMENT.api, "kind": "Deployment", "name": making.deployment.object_name},
        "minReplicas": max(scaling.min_replicas, 1),
        "maxReplicas": scaling.max_replicas,
    }
    if kind.api == "autoscaling/v1":
        spec["targetCPUUtilizationPercentage"] = scaling.target_cpu_percent
    else:
        target = {"type": "Utilization", "averageUtilization": scaling.target_cpu_percent}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    return {"apiVersion": kind.api, "kind": kind.name, "metadata": making.metadata, "spec": spec}


def _deployment(making: _Making, replicas: int | None, secrets_digest: str) -> Json:
    """Without its annotations. `replicas` is left out where an autoscaler sets it."""
    manifest = making.manifest
    pod = _pod(manifest, making.revision.image)
    labels = making.labels
    content = _digest([pod, labels, secrets_digest, making.revision.restarted])
    spec: Json = {
        "selector": making.selector,
        "progressDeadlineSeconds": manifest.progress_deadline_seconds,
        "revisionHistoryLimit": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {"metadata": {"labels": labels, "annotations": {CONTENT: content}}, "spec": pod},
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {
        "apiVersion": DEPLOYMENT.api,
        "kind": "Deployment",
        "metadata": making.metadata,
        "spec": spec,
    }


def _pod(manifest: AgentManifest, image: str) -> Json:
    health = manifest.health
    amounts = {"cpu": manifest.cpu, "memory": manifest.memory, "ephemeral-storage": SCRATCH}
    probe = {"httpGet": {"path": health.path, "port": "http"}, "timeoutSeconds": PROBE_TIMEOUT_SECONDS}
    # PORT stands last in the order of precedence: an image listens on what the platform connects to.
    environment = [
        {"name": name, "value": as_it_is(value)} for name, value in manifest.environment.items() if name != "PORT"
    ]
    container: Json = {
        "name": CONTAINER,
        "image": image,
        "env": [*environment, {"name": "PORT", "value": str(PORT)}],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "livenessProbe": {
            **probe,
            "initialDelaySeconds": health.liveness_delay,
            "periodSeconds": health.liveness_period,
        },
        "readinessProbe": {
            **probe,
            "initialDelaySeconds": health.readiness_delay,
            "periodSeconds": health.readiness_period,
        },
        "resources": {"requests": dict(amounts), "limits": amounts},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if manifest.command:
        container["command"] = list(map(as_it_is, manifest.command))
    if manifest.arguments:
        container["args"] = list(map(as_it_is, manifest.arguments))
    if manifest.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in manifest.secrets]
    return {
        "serviceAccountName": account_name(manifest.access_tier),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


def as_it_is(value: str) -> str:
    """A value that arrives in the container as its user wrote it. Kubernetes puts variables in the place of `$(NAME)`,
    and takes `$$` for one `$`; containers of one machine have neither."""
    return value.replace("$", "$$")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
