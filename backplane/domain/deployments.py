"""Deployments as values: agents that users bring as images, and that run in a cluster until they are deleted.

What is wanted and what is there are two things. The API writes what is wanted: a deployment has revisions, which never
change, and one of them is current. A controller makes it so, and writes what it found: `Rollout`. So nothing waits in a
request, and a deployment says at any time why it is not as it was wanted.

Objects in a cluster get their names from the deployment's id, so a controller that is killed and begins again makes
nothing twice.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from backplane.domain.agent_manifest import AccessTier, AgentManifest
from backplane.domain.sizes import MIB
from backplane.errors import Conflict, NotFound, TransitionNotAllowed

AGENT_ID_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
"""It begins the names of objects in the cluster, which have 63 characters, and is a label there."""
DEPLOYMENT_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$"
"""An id or an agent_id, by which a run names a deployment."""
NAMESPACE_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""RFC 1123, as Kubernetes wants it."""
RESERVED_NAMESPACES = frozenset({"default", "agents", "agents-tools"})
"""The platform's own, and the one that everybody is in who names none. Those that begin with `kube-` are the
cluster's."""
IMAGE_PATTERN = (
    r"^([A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?/)?[a-z0-9][a-z0-9._-]{0,127}(/[a-z0-9][a-z0-9._-]{0,127}){0,7}"
    r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?$"
)
"""REGISTRY/NAME:TAG@DIGEST. A path of the engine's machine (`dir:/PATH`) is none."""
IMAGE_CHARS = 500
_TRANSPORTS = frozenset(
    {
        *("atomic", "containers-storage", "dir", "docker", "docker-archive", "docker-daemon", "oci", "oci-archive"),
        *("ostree", "sif", "tarball"),
    }
)
"""What stands before such a colon, an engine may take as the way to an image and not as its name."""
NAMESPACES_MAX = 20
"""Of a user. A namespace stays its user's, for what is in the cluster's namespace is not deleted with a deployment."""
REVISIONS_KEPT = 50
"""Of a deployment, the current one and the one that a rollback would go to among them."""
EVENTS_KEPT = 1000
LOG_LINES_KEPT = 10_000
LOG_LINE_CHARS = 8192
LOG_CHARS_KEPT = 4 * MIB
LOG_BATCH_LINES = 1000
"""Of one call that stores lines: what is more came too fast."""
REASON_CHARS = 1000
GRACE_MAX_SECONDS = 3600
NAMED_SHOWN = 5
"""Deployments of the same agent that a message lists."""
PLATFORM = "platform"
"""Who makes a revision that no user has asked for."""
PORT = 3000
"""What an agent's image listens on, under the name `http`."""


DeploymentKey = tuple[int, int, datetime]
"""Another one when anything of a deployment has changed: its version, its last event, when it was written."""


class DeploymentStatus(StrEnum):
    """`running`: enough replicas are available; `failed`: the rollout has ended without them, or none is available;
    `stopped`: none is wanted."""

    DEPLOYING = "deploying"
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"


class Approval(StrEnum):
    """Whether an administrator lets a revision run. `not_needed`: its access tier wants no approval."""

    NOT_NEEDED = "not_needed"
    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"


class RevisionOutcome(StrEnum):
    """What became of a revision's rollout. `replaced`: another revision came before it ended."""

    PENDING = "pending"
    ROLLED_OUT = "rolled_out"
    FAILED = "failed"
    REPLACED = "replaced"


class DeploymentEventType(StrEnum):
    CREATED = "created"
    REVISION = "revision"  # a new revision is wanted: of its user, of a rollback
    APPROVED = "approved"
    REJECTED = "rejected"
    SCALED = "scaled"
    PAUSED = "paused"
    RESUMED = "resumed"
    ROLLED_OUT = "rolled_out"
    FAILED = "failed"  # the rollout of a revision
    RECOVERED = "recovered"  # it runs again, without a new revision
    DEGRADED = "degraded"  # it ran, and has too few replicas now
    ROLLED_BACK = "rolled_back"  # by itself
    DRIFTED = "drifted"  # somebody else changed what was declared
    DELETING = "deleting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Revision:
    """A row that never changes but for its approval and its outcome. `cause`: in words, why there is this revision.
    `restarted`: a number that rises when the same content is to be started anew."""

    number: int
    image: str
    manifest: AgentManifest
    cause: str
    created_by: str
    created_at: datetime
    restarted: int = 0
    approval: Approval = Approval.NOT_NEEDED
    decided_by: str | None = None
    decided_at: datetime | None = None
    decision_reason: str = ""
    outcome: RevisionOutcome = RevisionOutcome.PENDING
    outcome_reason: str = ""
    ended_at: datetime | None = None

    @property
    def may_run(self) -> bool:
        return self.approval in (Approval.NOT_NEEDED, Approval.APPROVED)

    @property
    def digest(self) -> str:
        """Of what runs: two revisions with the same digest have the same content."""
        return content_digest(self.image, self.manifest)


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the target has, as a controller last saw it. `revision`: the one that the target was asked for; 0: none yet.
    `is_complete`: all replicas are of that revision and available, and none of an older one is left. `reason`: why it
    is not complete, in the target's own words. `drift`: what differs from the declaration, a line each, `PATH: wanted
    VALUE, found VALUE`. `began_at`: when this revision was first asked for. `seen_at`: None until a controller has
    looked. `urls`: where workers reach the replicas that are ready, without a path; empty: none is.
    `url`: where others reach it; empty: nowhere by one name; None: a controller of an older release wrote this."""

    revision: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    is_complete: bool = False
    has_failed: bool = False
    reason: str = ""
    drift: tuple[str, ...] = ()
    began_at: datetime | None = None
    seen_at: datetime | None = None
    urls: tuple[str, ...] = ()
    url: str | None = None

    def as_json(self) -> dict[str, Any]:
        times = {name: at.isoformat() if (at := getattr(self, name)) else None for name in ("began_at", "seen_at")}
        return {**asdict(self), **times}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Rollout":
        times = {name: datetime.fromisoformat(at) if (at := values[name]) else None for name in ("began_at", "seen_at")}
        lists = {"drift": tuple(values["drift"]), "urls": tuple(values.get("urls", ()))}
        return cls(**{**values, **times, **lists})


@dataclass(frozen=True, slots=True)
class Deployment:
    """A row. `current`: the newest revision. `effective`: what the target is to have: the current one, or while that
    waits for approval the newest before it that may run; None: nothing may run yet. `replicas`: how many are wanted;
    None: an autoscaler decides between the manifest's bounds. `paused`: the target is left as it is.
    `delete_grace_seconds`: of its replicas. `version`: rises with each change of what is wanted; a controller that saw
    an older version writes nothing."""

    id: str
    user_id: str
    agent_id: str
    namespace: str
    current: Revision
    effective: Revision | None
    replicas: int | None
    status: DeploymentStatus
    reason: str
    rollout: Rollout
    created_at: datetime
    updated_at: datetime
    paused: bool = False
    deleted_at: datetime | None = None
    delete_grace_seconds: int = 30
    version: int = 1

    @property
    def object_name(self) -> str:
        """Of its objects in the cluster, and of its containers: at most 53 characters."""
        return f"{self.agent_id}-{self.id.replace('-', '')[-12:]}"

    @property
    def url(self) -> str:
        """Where others reach it, as the controller says; before it has looked, and in a cluster, the Service's name."""
        return self.service_url if self.rollout.url is None else self.rollout.url

    @property
    def service_url(self) -> str:
        """Where others in the cluster reach it."""
        return f"http://{self.object_name}.{self.namespace}.svc:80"

    @property
    def awaits_approval(self) -> bool:
        return self.current.approval is Approval.PENDING


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """What a user asks for. `idempotency`: the key that the user has sent, and a digest of the request."""

    agent_id: str
    namespace: str
    image: str
    manifest: AgentManifest
    idempotency: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class DeploymentFilter:
    """What is None does not count."""

    namespace: str | None = None
    status: DeploymentStatus | None = None
    agent_id: str | None = None
    approval: Approval | None = None


@dataclass(frozen=True, slots=True)
class DeploymentEvent:
    number: int
    deployment_id: str
    type: DeploymentEventType
    message: str
    revision: int
    at: datetime


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a replica printed. `number`: the cursor, without gaps for one deployment until old lines go.
    `left_out`: lines before this one that were not kept, since they came too fast."""

    number: int
    replica: str
    text: str
    at: datetime
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class PrintedLine:
    """A line as a target gives it."""

    replica: str
    text: str
    at: datetime
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class LogPage:
    """Lines behind a cursor. `oldest`: the number of the oldest line that is kept, `last`: of the newest that there
    ever was; 0: there was none."""

    lines: list[LogLine]
    oldest: int
    last: int


def content_digest(image: str, manifest: AgentManifest) -> str:
    content = json.dumps([image, manifest.source], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def needs_approval(tier: AccessTier) -> bool:
    return tier in (AccessTier.WRITE_ELEVATED, AccessTier.POLICY)


def first_replicas(manifest: AgentManifest) -> int | None:
    """How many a deployment begins with; None: an autoscaler decides."""
    return None if manifest.is_autoscaled else manifest.scaling.min_replicas


def next_replicas(replicas: int | None, before: AgentManifest, after: AgentManifest) -> int | None:
    """How many are wanted with another manifest. What was scaled by hand stays, as long as the manifest does not say
    otherwise than before."""
    if after.is_autoscaled or before.is_autoscaled or before.scaling.min_replicas != after.scaling.min_replicas:
        return first_replicas(after)
    return replicas


def replicas_at_most(deployment: Deployment) -> int:
    """How many it may come to have as it is wanted, of what runs and of a revision that waits for approval."""
    running, current = deployment.effective, deployment.current
    counts = [0]
    if running is not None:
        counts.append(running.manifest.scaling.max_replicas or deployment.replicas or 0)
    is_new = running is None or current.number != running.number
    if is_new and current.approval is not Approval.REJECTED:
        before = running.manifest if running is not None else current.manifest
        after = next_replicas(deployment.replicas, before, current.manifest)
        counts.append(current.manifest.scaling.max_replicas or after or 0)
    return max(counts)


def namespace_fault(namespace: str, reserved: Collection[str] = RESERVED_NAMESPACES) -> str | None:
    """Why this cannot be a deployment's namespace; None: it can."""
    if not re.fullmatch(NAMESPACE_PATTERN, namespace):
        return "a namespace has small letters, digits and hyphens, at most 63, and no hyphen at either end"
    if namespace in reserved or namespace in RESERVED_NAMESPACES or namespace.startswith("kube-"):
        return f"the namespace {namespace} is not for deployments; choose another name"
    return None


def image_of_registry(image: str) -> str:
    """The image. Raises ValueError where an engine would look for it on its own machine."""
    name = image.partition(":")[0]
    if name in _TRANSPORTS:
        raise ValueError(f"{name}: is no registry; give REGISTRY/NAME:TAG, such as registry.example.org/{name}:TAG")
    return image


def approval_reason(deployment: Deployment) -> str:
    """Why the current revision does not run, while it waits for approval."""
    current, running = deployment.current, deployment.effective
    meanwhile = f"; revision {running.number} goes on meanwhile" if running else ""
    return (
        f"revision {current.number} waits until an administrator approves it, since its access tier is "
        f"{current.manifest.access_tier.value}{meanwhile}"
    )


def the_one_named(name: str, found: Sequence[Deployment]) -> Deployment:
    """Of a user's deployments whose id or agent_id is `name`, the one that is meant. Raises NotFound, Conflict,
    TransitionNotAllowed."""
    if not found:
        raise NotFound(f"there is no deployment {name} of yours; GET /api/deployments lists those there are")
    live = [deployment for deployment in found if deployment.deleted_at is None]
    if not live:
        raise TransitionNotAllowed(f"deployment {name} is being deleted; deploy the agent again, or name another one")
    if len(live) > 1:
        there = ", ".join(f"{deployment.id} in {deployment.namespace}" for deployment in live[:NAMED_SHOWN])
        raise Conflict(f"{name} is deployed in several namespaces; name one by its id: {there}")
    return live[0]


def explanation(deployment: Deployment) -> str:
    """In words, why a deployment is not as wanted, or that it is."""
    rollout, current = deployment.rollout, deployment.current
    if deployment.deleted_at is not None:
        return f"It is being deleted, and goes when nothing of it is left. {deployment.reason}".strip()
    parts = []
    if deployment.awaits_approval:
        parts.append(f"{_sentence(approval_reason(deployment))}.")
    if deployment.paused:
        parts.append("It is paused: what runs is left as it is until it is resumed.")
    if rollout.seen_at is None:
        parts.append("No controller has looked at it yet: one with DEPLOY_TARGET does that within seconds.")
    elif deployment.status is DeploymentStatus.RUNNING:
        parts.append(f"{rollout.ready_replicas} of {rollout.replicas} replicas are ready.")
    if current.approval is Approval.REJECTED:
        parts.append(f"Revision {current.number} was rejected: {current.decision_reason or 'without a reason'}.")
    if deployment.reason and not deployment.awaits_approval:
        parts.append(f"{_sentence(deployment.reason)}.")
    if rollout.drift:
        parts.append(f"It differs from what was declared at {len(rollout.drift)} place(s): see its drift.")
    return " ".join(parts) or "It is as it was wanted."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}".rstrip(".")
