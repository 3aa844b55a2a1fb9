"""The Compose file of those services that name an image: the same containers that a controller would start.

Their volumes have the same names as the controller's, so that data stays when one takes the other's place. Secrets are
in no declaration: each container reads `NAME.env` of a folder, where there is one.
"""

from collections.abc import Sequence
from typing import Any

from agentctl.api.api_error import JsonObject
from backplane.domain.services import PIDS_MAX, VOLUME_PREFIX, ContainerSpec

ENV_FOLDER = "services"


def compose_of(services: Sequence[JsonObject], bind: str = "127.0.0.1") -> dict[str, Any]:
    """`services`: as a file or the API has them. `bind`: the address on which ports are published."""
    containers = {service["name"]: service for service in services if (service.get("container") or {}).get("image")}
    volumes = {
        f"{name}-{volume}": {"name": f"{VOLUME_PREFIX}{name}-{volume}"}
        for name, service in containers.items()
        for volume in service["container"].get("volumes") or {}
    }
    composed: dict[str, Any] = {
        "name": "agent-services",
        "services": {name: _service(name, service, bind) for name, service in containers.items()},
    }
    return composed | ({"volumes": volumes} if volumes else {})


def _service(name: str, service: JsonObject, bind: str) -> dict[str, Any]:
    container, standard = service["container"], ContainerSpec(image="")
    host = f"[{bind}]" if ":" in bind else bind
    inside = container.get("port") or service["port"]
    composed = {
        "image": container["image"],
        "restart": "unless-stopped",
        "command": [_escaped(word) for word in container.get("command") or ()],
        "environment": {key: _escaped(value) for key, value in (container.get("environment") or {}).items()},
        "env_file": [{"path": f"{ENV_FOLDER}/{name}.env", "required": False}],
        "ports": [f"{host}:{service['port']}:{inside}"],
        "volumes": [f"{name}-{volume}:{folder}" for volume, folder in (container.get("volumes") or {}).items()],
        "mem_limit": container.get("memory_bytes") or standard.memory_bytes,
        "cpus": container.get("cpus") or standard.cpus,
        "pids_limit": PIDS_MAX,
        "security_opt": ["no-new-privileges:true"],
    }
    return {key: value for key, value in composed.items() if value not in ([], {})}


def _escaped(value: str) -> str:
    """Compose puts a variable in place of `$NAME`."""
    return value.replace("$", "$$")
