"""What is to be done about one service's container: a decision over what was declared and what the engine has."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from backplane.containers.engine import PresentContainer, log_words, without_proxies
from backplane.domain.services import PIDS_MAX, VOLUME_PREFIX, Service

PLATFORM_LABEL = "agent-platform.platform"
SERVICE_LABEL = "agent-platform.service"
DECLARED_LABEL = "agent-platform.declared"


ENDED = frozenset({"exited", "created", "configured", "initialized", "stopped", "dead"})
"""States, in the words of either engine, in which a container does not come up by itself."""


class ContainerAction(StrEnum):
    """`remove` and `replace` are about containers with our labels alone."""

    NOTHING = "nothing"
    RUN = "run"
    START = "start"
    REPLACE = "replace"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class ServicesHost:
    """Of the services' host. `bind`: the address on which ports are published."""

    bind: str
    platform_id: str


def action_for(service: Service | None, present: PresentContainer | None, declared: str) -> ContainerAction:
    """`service`: None: there is none whose container this is. `declared`: the digest of what is declared now."""
    if service is None or service.deleted_at is not None or service.spec.container is None:
        return ContainerAction.REMOVE if present is not None else ContainerAction.NOTHING
    if present is None:
        return ContainerAction.RUN
    if present.labels.get(DECLARED_LABEL) != declared:
        return ContainerAction.REPLACE
    return ContainerAction.START if present.state in ENDED else ContainerAction.NOTHING


def digest_of(service: Service, rules: ServicesHost) -> str:
    """Of all that the container is made of."""
    assert service.spec.container is not None
    made_of = [asdict(service.spec.container), service.spec.port, service.name, rules.bind]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def run_words(service: Service, rules: ServicesHost, env_file: str, env_text: str = "") -> Sequence[str]:
    """Options of `run`, the image and its command. `env_text`: what `env_file` holds."""
    container = service.spec.container
    assert container is not None
    host = f"[{rules.bind}]" if ":" in rules.bind else rules.bind
    labels = {
        PLATFORM_LABEL: rules.platform_id,
        SERVICE_LABEL: service.id,
        DECLARED_LABEL: digest_of(service, rules),
    }
    return [
        f"--name=agent-service-{service.name}",
        *(f"--label={name}={value}" for name, value in labels.items()),
        "--restart=unless-stopped",
        f"--publish={host}:{service.spec.port}:{container.port or service.spec.port}",
        *(f"--env={name}={value}" for name, value in without_proxies(container.environment, [env_text]).items()),
        *([f"--env-file={env_file}"] if env_file else []),
        *(f"--volume={VOLUME_PREFIX}{service.name}-{name}:{folder}" for name, folder in container.volumes.items()),
        f"--memory={container.memory_bytes}",
        f"--cpus={container.cpus:g}",
        f"--pids-limit={PIDS_MAX}",
        "--security-opt=no-new-privileges",
        *log_words(),
        container.image,
        *container.command,
    ]
