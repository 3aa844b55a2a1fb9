"""Manifests and deployments for tests."""

import copy
from typing import Any

from backplane.domain.agent_manifest import AgentManifest, parse_manifest
from backplane.domain.deployments import NewDeployment

IMAGE = "registry.example.org/support:1.2.0"
MANIFEST: dict[str, Any] = {
    "apiVersion": "ossa/v0.4.6",
    "kind": "Agent",
    "metadata": {"name": "support", "version": "1.2.0"},
    "spec": {
        "role": "assistant",
        "access_tier": "tier_1_read",
        "deployment": {
            "scaling": {"min_replicas": 2},
            "resources": {"cpu": "500m", "memory": "512Mi"},
        },
        "monitoring": {"health_check": "/health"},
    },
}


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest with other values at these paths, whose parts are joined by `__`."""
    made = copy.deepcopy(MANIFEST)
    for path, value in changes.items():
        *above, name = path.split("__")
        part = made
        for step in above:
            part = part.setdefault(step, {})
        part[name] = value
    return made


def parsed(**changes: Any) -> AgentManifest:
    return parse_manifest(manifest(**changes))


def new_deployment(agent_id: str = "support", namespace: str = "team-a", **changes: Any) -> NewDeployment:
    return NewDeployment(agent_id, namespace, IMAGE, parsed(**changes))


ELEVATED: dict[str, Any] = {"spec__access_tier": "tier_3_write_elevated"}
AUTOSCALED: dict[str, Any] = {"spec__deployment__scaling": {"min_replicas": 1, "max_replicas": 5}}
