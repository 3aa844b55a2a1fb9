"""What is to be done about a deployment's containers on one machine: a decision over what was declared and what the
engine has.

A replica is a container whose name has the digest of what it is made of, and a number. So a controller that is killed
and begins again, or two at once, make none twice: the engine refuses the name. While content changes there is one more
than wanted and never a ready one fewer, as in a cluster.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from backplane.containers.engine import PresentContainer, log_words, without_proxies
from backplane.domain.agent_manifest import HealthProbe
from backplane.domain.deployments import PORT, REASON_CHARS, Deployment, Revision, Rollout
from backplane.domain.quantities import cpu_millis, memory_bytes
from controller.deployments.target import replicas_wanted

PLATFORM_LABEL = "agent-platform.deployments"
"""Not that of services: their controller removes what has its label and is no service."""
DEPLOYMENT_LABEL = "agent-platform.deployment"
CONTENT_LABEL = "agent-platform.content"
REVISION_LABEL = "agent-platform.revision"
HEALTH_LABEL = "agent-platform.health"
"""How a replica is probed: each as the manifest of its own revision declares."""
USER_ID = 10001
PIDS_MAX = 512
RESTARTS = 3
HOPELESS_AFTER = timedelta(seconds=30)
"""So long a container may end again and again before its revision has failed."""
ENDED = frozenset({"exited", "created", "configured", "initialized", "stopped", "dead"})


@dataclass(frozen=True, slots=True)
class ContainerHost:
    """`bind`: the address on which ports are published. `env_folder`: with NAMESPACE/NAME.env; None: there is none."""

    platform_id: str
    bind: str
    env_folder: Path | None


@dataclass(frozen=True, slots=True)
class ReplicaContainer:
    """One that the engine has. `is_ready`: it answers its health check. `words`: why it does not, or what it printed
    last."""

    present: PresentContainer
    is_ready: bool = False
    words: str = ""

    @property
    def content(self) -> str:
        return self.present.labels.get(CONTENT_LABEL, "")

    @property
    def has_ended(self) -> bool:
        return self.present.state in ENDED


@dataclass(frozen=True, slots=True)
class ContainerChanges:
    """`start`: names of containers that are missing. `begin`: those that ended. `remove`: those that are too many."""

    start: Sequence[str] = ()
    begin: Sequence[PresentContainer] = ()
    remove: Sequence[PresentContainer] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.start or self.begin or self.remove)


def number_wanted(deployment: Deployment) -> int:
    """No autoscaler is here: the least that the manifest says runs."""
    if deployment.effective is None:
        return 0
    replicas = replicas_wanted(deployment)
    return deployment.effective.manifest.scaling.min_replicas if replicas is None else replicas


def content_of(revision: Revision, host: ContainerHost, secrets: Sequence[str]) -> str:
    """The digest of all that a replica is made of. `secrets`: the content of the files that it names."""
    manifest = revision.manifest
    made_of = [
        *(revision.image, revision.restarted, host.bind, manifest.cpu, manifest.memory),
        asdict(manifest.health),
        *(list(manifest.command), list(manifest.arguments), dict(manifest.environment), list(manifest.secrets)),
        [hashlib.sha256(one.encode()).hexdigest() for one in secrets],
    ]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def changes_of(name: str, wanted: int, content: str, there: Sequence[ReplicaContainer]) -> ContainerChanges:
    """`name`: of the deployment's objects."""
    new = sorted((one for one in there if one.content == content), key=lambda one: one.present.name)
    old = [one for one in there if one.content != content]
    ready = sum(one.is_ready for one in new)
    # Old ones stand in for new ones that are not ready, those that serve first.
    old.sort(key=lambda one: not one.is_ready)
    leaving = old[max(wanted - ready, 0) :] + new[wanted:]
    room = wanted + bool(old) - len(there)
    taken = {one.present.name for one in new}
    names = [each for number in range(wanted) if (each := f"{name}-{content[:8]}-{number}") not in taken]
    return ContainerChanges(
        start=names[: max(min(wanted - len(new), room), 0)],
        begin=[one.present for one in new[:wanted] if one.has_ended and one.present.restarts == 0],
        remove=[one.present for one in leaving],
    )


def rollout_of_containers(
    deployment: Deployment, wanted: int, content: str, there: Sequence[ReplicaContainer], now: datetime
) -> Rollout:
    running = deployment.effective
    if running is None:
        return Rollout(seen_at=now)
    new = [one for one in there if one.content == content]
    ready = [one for one in there if one.is_ready]
    is_asked = bool(new) or not wanted
    older = max((int(one.present.labels.get(REVISION_LABEL, 0)) for one in there), default=0)
    is_complete = is_asked and len(there) == len(new) == len(ready) == wanted
    began = deployment.rollout.began_at if deployment.rollout.revision == running.number else None
    is_late = began is not None and (now - began).total_seconds() > running.manifest.progress_deadline_seconds
    is_hopeless = not any(one.is_ready for one in new) and any(_is_hopeless(one, now) for one in new)
    reasons = [f"container {one.present.name} {one.words}" for one in new if one.words and not one.is_ready]
    if is_late and not is_complete:
        reasons.append(f"it is not ready within {running.manifest.progress_deadline_seconds} s")
    return Rollout(
        revision=running.number if is_asked else older,
        replicas=wanted,
        ready_replicas=len(ready),
        updated_replicas=len(new),
        is_complete=is_complete,
        has_failed=not is_complete and (is_late or is_hopeless),
        reason="" if is_complete else "; ".join(reasons)[:REASON_CHARS],
        seen_at=now,
    )


def health_of(one: PresentContainer) -> HealthProbe | None:
    """How it was declared when it was made; None: nobody wrote that down."""
    try:
        return HealthProbe(**json.loads(one.labels.get(HEALTH_LABEL, "")))
    except (ValueError, TypeError):
        return None


def replica_words(
    name: str, content: str, deployment: Deployment, host: ContainerHost, secrets: Sequence[str] = ()
) -> list[str]:
    """Options of `run`, the image and its command. `secrets`: the content of the files that it names."""
    revision = deployment.effective
    assert revision is not None
    manifest = revision.manifest
    labels = {
        PLATFORM_LABEL: host.platform_id,
        DEPLOYMENT_LABEL: deployment.id,
        CONTENT_LABEL: content,
        REVISION_LABEL: str(revision.number),
        HEALTH_LABEL: json.dumps(asdict(manifest.health)),
        **{"app": deployment.agent_id, "version": manifest.version, "role": manifest.role},
        "tier": manifest.access_tier.value,
    }
    address = f"[{host.bind}]" if ":" in host.bind else host.bind
    environment = {**without_proxies(manifest.environment, secrets), "PORT": str(PORT)}
    # `--entrypoint` takes one word; what follows it stands before the arguments.
    command, *rest = manifest.command or ("",)
    return [
        f"--name={name}",
        *(f"--label={key}={value}" for key, value in labels.items()),
        "--restart=unless-stopped",
        f"--publish={address}::{PORT}",
        *(f"--env={key}={value}" for key, value in environment.items()),
        *(f"--env-file={secret_file(host, deployment.namespace, secret)}" for secret in manifest.secrets),
        *([f"--entrypoint={command}"] if command else []),
        f"--user={USER_ID}:{USER_ID}",
        f"--memory={memory_bytes(manifest.memory)}",
        f"--cpus={cpu_millis(manifest.cpu) / 1000:g}",
        f"--pids-limit={PIDS_MAX}",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        *log_words(),
        revision.image,
        *rest,
        *manifest.arguments,
    ]


def url_of(host: ContainerHost, port: int) -> str:
    address = f"[{host.bind}]" if ":" in host.bind else host.bind
    return f"http://{address}:{port}"


def urls_of(host: ContainerHost, there: Sequence[ReplicaContainer]) -> tuple[str, ...]:
    """Where the replicas that are ready are reached."""
    ports = [one.present.ports.get(PORT) for one in there if one.is_ready]
    return tuple(sorted(url_of(host, port) for port in ports if port is not None))


def secret_file(host: ContainerHost, namespace: str, secret: str) -> Path | None:
    return host.env_folder / namespace / f"{secret}.env" if host.env_folder else None


def _is_hopeless(one: ReplicaContainer, now: datetime) -> bool:
    made_at = one.present.made_at
    is_old = made_at is not None and now - made_at >= HOPELESS_AFTER
    return is_old and (one.present.restarts >= RESTARTS or one.has_ended)
