"""The Job that is a sandbox on Kubernetes: its name, its labels, and all that its pod may and may not do.

Values only; `worker.sandbox.kubernetes.jobs` talks to the API server. A name follows from what the Job is for, so
creating it again after an answer that was lost is the same Job. The pod gets no token, no service's address, no name
server and no variable but a home and a language. A Job cannot keep its own pod from the network: a NetworkPolicy of the
namespace does that.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backplane.domain import sandbox_labels
from backplane.domain.sandbox_labels import label_value
from worker.sandbox.base import Call, Limits

CONTAINER = "sandbox"
FIRST_USER_ID = 100_000
USER_IDS = 2_000_000_000
"""Each Job has a user of its own: the kernel counts processes by user, and not by pod, for a limit on them."""
WORKSPACE = "/workspace"

_BLOCK_BYTES = 4096
_SLACK_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What all Jobs of a worker have in common. `argv` is the container's first process; `ttl_seconds` is how long a
    finished Job stays; `worker_id` marks the Jobs of this worker."""

    namespace: str
    image: str
    argv: tuple[str, ...]
    worker_id: str
    ttl_seconds: int
    tmp_bytes: int
    runtime_class: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str | int]] = ()
    pull_secrets: Sequence[str] = ()


def step_name(call: Call) -> str:
    """Name of the Job of one try of a step."""
    return "step-" + _digest(call.run_id, call.step_id, str(call.generation), str(call.tries))


def run_name(call: Call, number: int) -> str:
    """Name of the `number`th Job that one worker makes for the commands of a run."""
    return "run-" + _digest(call.run_id, str(call.generation), str(number))


def warm_name(unique: str) -> str:
    """Name of a Job that is started ahead of its use. `unique` is its own, e.g. a UUID."""
    return "warm-" + _digest(unique)


def user_id(name: str) -> int:
    """The number of the user and group that a Job of this name runs as."""
    return FIRST_USER_ID + int(_digest(name)[:12], 16) % USER_IDS


def worker_labels(worker_id: str) -> dict[str, str]:
    """What every Job and pod of a worker bears: the worker watches all that has these."""
    return {sandbox_labels.PART: sandbox_labels.SANDBOX, sandbox_labels.WORKER: label_value(worker_id)}


def step_labels(call: Call, worker_id: str) -> dict[str, str]:
    return worker_labels(worker_id) | {
        sandbox_labels.USER: label_value(call.user_id),
        sandbox_labels.RUN: label_value(call.run_id),
        sandbox_labels.STEP: label_value(call.step_id),
        sandbox_labels.GENERATION: str(call.generation),
        sandbox_labels.TRIES: str(call.tries),
    }


def run_labels(call: Call, worker_id: str) -> dict[str, str]:
    """Of a Job that takes all commands of a run: of no step or try."""
    return worker_labels(worker_id) | {
        sandbox_labels.USER: label_value(call.user_id),
        sandbox_labels.RUN: label_value(call.run_id),
        sandbox_labels.GENERATION: str(call.generation),
    }


def warm_labels(worker_id: str) -> dict[str, str]:
    return worker_labels(worker_id) | {sandbox_labels.POOL: "warm"}


def selector(labels: Mapping[str, str]) -> str:
    """A label selector for all that has these labels."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def manifest(
    name: str, labels: Mapping[str, str], limits: Limits, settings: JobSettings, deadline_seconds: float
) -> dict[str, Any]:
    """The whole Job. `deadline_seconds` counts from its creation: the wait for a place and the pull of the image are
    within it."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": dict(labels)},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": max(1, math.ceil(deadline_seconds)),
            "ttlSecondsAfterFinished": settings.ttl_seconds,
            "template": {
                "metadata": {
                    "labels": dict(labels),
                    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                },
                "spec": _pod(limits, settings, user_id(name)),
            },
        },
    }


def _pod(limits: Limits, settings: JobSettings, user: int) -> dict[str, Any]:
    workspace_bytes = _on_disk(limits)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostname": "sandbox",
        # A pod must name a name server to be without the cluster's. Nobody listens at this one.
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(limits, settings, workspace_bytes)],
        "volumes": [
            {"name": "workspace", "emptyDir": {"sizeLimit": str(workspace_bytes)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": str(settings.tmp_bytes)}},
        ],
    }
    if settings.runtime_class:
        pod["runtimeClassName"] = settings.runtime_class
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in settings.tolerations]
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return pod


def _container(limits: Limits, settings: JobSettings, workspace_bytes: int) -> dict[str, Any]:
    resources = {
        "cpu": f"{math.ceil(limits.cpus * 1000)}m",
        "memory": str(limits.memory_bytes),
        "ephemeral-storage": str(workspace_bytes + settings.tmp_bytes + _SLACK_BYTES),
    }
    return {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(settings.argv),
        "workingDir": WORKSPACE,
        "env": [{"name": "HOME", "value": WORKSPACE}, {"name": "LANG", "value": "C.UTF-8"}],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "workspace", "mountPath": WORKSPACE}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        # What a command prints goes another way; the first process' own last words are kept for an error's message.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _on_disk(limits: Limits) -> int:
    """The node counts blocks: files that are just within their limit take more of those than they have bytes."""
    return limits.disk_bytes + limits.files * _BLOCK_BYTES


def _digest(*parts: str) -> str:
    # With each part's length, so that no two lists of parts read alike.
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
