"""Deployments as values: agents that users bring as images, and that run in a cluster until they are deleted.

What is wanted and what is there are two things. The API writes what is wanted: a deployment has revisions, which never
change, and one of them is current. A controller makes it so, and writes what it found: `Rollout`. So nothing waits in a
request, and a deployment says at any time why it is not as it was wanted.

Objects in a cluster get their names from the deployment's id, so a controller that is killed and begins again makes
nothing twice.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from backplane.domain.agent_manifest import AccessTier, AgentManifest

AGENT_ID_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"
"""It begins the names of objects in the cluster, which have 63 characters, and is a label there."""
NAMESPACE_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
"""RFC 1123, as Kubernetes wants it."""
RESERVED_NAMESPACES = frozenset({"default", "agents", "agents-tools"})
"""The platform's own, and the one that everybody is in who names none. Those that begin with `kube-` are the
cluster's."""
DEPLOYMENTS_MAX = 100
"""Of a user."""
REVISIONS_KEPT = 50
"""Of a deployment, the current one and the one that a rollback would go to among them."""
EVENTS_KEPT = 1000
LOG_LINES_KEPT = 10_000
LOG_LINE_CHARS = 8192
REASON_CHARS = 1000
IMAGE_CHARS = 500
PORT = 3000
"""What an agent's image listens on, under the name `http`."""


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


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the target has, as a controller last saw it. `revision`: the one that the target was asked for; 0: none yet.
    `is_complete`: all replicas are of that revision and available, and none of an older one is left. `reason`: why it
    is not complete, in the target's own words. `drift`: what differs from the declaration, a line each, `PATH: wanted
    VALUE, found VALUE`. `began_at`: when this revision was first asked for. `seen_at`: None until a controller has
    looked."""

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


@dataclass(frozen=True, slots=True)
class Deployment:
    """A row. `replicas`: how many are wanted; None: an autoscaler decides between the manifest's bounds. `paused`: the
    target is left as it is. `delete_after`: the grace of its pods, in seconds. `version`: rises with each change of
    what is wanted; a controller that saw an older version writes nothing."""

    id: str
    user_id: str
    agent_id: str
    namespace: str
    current: Revision
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
    def may_run(self) -> bool:
        return self.current.approval in (Approval.NOT_NEEDED, Approval.APPROVED)


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


def needs_approval(tier: AccessTier) -> bool:
    return tier in (AccessTier.WRITE_ELEVATED, AccessTier.POLICY)


def namespace_fault(namespace: str) -> str | None:
    """Why this cannot be a deployment's namespace; None: it can."""
    if not re.fullmatch(NAMESPACE_PATTERN, namespace):
        return "a namespace has lower-case letters, digits and hyphens, at most 63, and no hyphen at either end"
    if namespace in RESERVED_NAMESPACES or namespace.startswith("kube-"):
        return f"the namespace {namespace} is not for deployments; choose another name"
    return None
