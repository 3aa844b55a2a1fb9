"""What the API takes and gives of deployments."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, Field

from app.schemas.described import DescribedAs
from app.schemas.fields import ID_PATTERN, JsonObject, NextCursor, NextNumber, StrictRequest, Text
from backplane.domain.agent_manifest import AccessTier
from backplane.domain.deployments import (
    AGENT_ID_PATTERN,
    GRACE_MAX_SECONDS,
    IMAGE_CHARS,
    IMAGE_PATTERN,
    NAMESPACE_PATTERN,
    Approval,
    Deployment,
    DeploymentEvent,
    DeploymentEventType,
    DeploymentStatus,
    Revision,
    RevisionOutcome,
    explanation,
    image_of_registry,
)
from backplane.domain.manifest_form import REPLICAS_MAX, ManifestForm

_ID = "01936f7e-9f5c-7b3a-8c41-3d5e0f9a2b6c"
_IMAGE = "registry.example.org/support:1.2.0"
EXAMPLE_MANIFEST: dict[str, Any] = {
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

DeploymentId = Annotated[
    str, Path(pattern=ID_PATTERN, examples=[_ID], description="Id of a deployment, as POST gave it.")
]
AgentIdFilter = Annotated[str | None, Query(pattern=AGENT_ID_PATTERN, description="Only those of this agent.")]
NamespaceFilter = Annotated[str | None, Query(pattern=NAMESPACE_PATTERN, description="Only those of this namespace.")]
WaitSeconds = Annotated[
    float,
    Query(ge=0, le=60, description="Answer when it is no longer `deploying`, or after so long. Else at once."),
]
Grace = Annotated[int, Query(ge=0, le=GRACE_MAX_SECONDS, description="How long its replicas have to end, in seconds.")]

ManifestObject = Annotated[JsonObject, DescribedAs(ManifestForm)]
_Image = Annotated[
    str,
    Field(pattern=IMAGE_PATTERN, max_length=IMAGE_CHARS, description="What its replicas run.", examples=[_IMAGE]),
    AfterValidator(image_of_registry),
]


class NewDeploymentRequest(StrictRequest):
    agent_id: str = Field(
        pattern=AGENT_ID_PATTERN, description="Names it: small letters, digits and hyphens.", examples=["support"]
    )
    namespace: str = Field(
        pattern=NAMESPACE_PATTERN,
        description="Made where it is missing. It is the first user's who names it.",
        examples=["team-a"],
    )
    image: _Image
    manifest: ManifestObject = Field(description="Of the agent (OSSA).", examples=[EXAMPLE_MANIFEST])


class DeploymentChangeRequest(StrictRequest):
    """What is left out stays as it is."""

    image: _Image | None = None
    manifest: ManifestObject | None = Field(None, description="Of the agent (OSSA); the whole of it.")


class ScaleRequest(StrictRequest):
    replicas: int = Field(ge=0, le=REPLICAS_MAX, description="So many are wanted; 0 stops it.", examples=[3])


class RollbackRequest(StrictRequest):
    revision: int | None = Field(
        None, ge=1, le=2**31 - 1, description="Else the last one before that has another content.", examples=[2]
    )


class ApproveRevision(StrictRequest):
    decision: Literal["approve"]
    revision: int = Field(
        ge=1, le=2**31 - 1, description="The revision that was looked at: refused where another one waits by now."
    )


class RejectRevision(StrictRequest):
    decision: Literal["reject"]
    reason: Text = Field("", max_length=1000, description="Its user reads it.")
    revision: int | None = Field(None, ge=1, le=2**31 - 1, description="The revision that is meant.")


RevisionDecision = Annotated[ApproveRevision | RejectRevision, Field(discriminator="decision")]


class AutoscaledView(BaseModel):
    min: int = Field(examples=[1])
    max: int = Field(examples=[5])


class DeploymentView(BaseModel):
    id: str = Field(examples=[_ID])
    user_id: str = Field(description="Whose it is.")
    namespace: str = Field(examples=["team-a"])
    agent_id: str = Field(examples=["support"])
    status: DeploymentStatus = Field(
        description="deploying: a change is on its way, or waits for approval. running: it serves; `reason` says what "
        "is missing. failed: the rollout ended without enough replicas, or none is available. stopped: none is wanted."
    )
    reason: str = Field(description="Why it is not as wanted, in the cluster's words; empty: it is.")
    replicas: int = Field(description="Wanted; of an autoscaled one those there are.", examples=[2])
    ready_replicas: int = Field(examples=[2])
    autoscaled: AutoscaledView | None = Field(description="Between how many an autoscaler decides; null: none does.")
    revision: int = Field(description="The newest.", examples=[3])
    running_revision: int | None = Field(
        description="The one that is to run: an older one while the newest waits for approval; null: none yet."
    )
    approval: Approval = Field(description="Of the newest revision.")
    image: str = Field(examples=[_IMAGE])
    access_tier: AccessTier
    auto_rollback: bool
    paused: bool
    drift: list[str] = Field(
        description="What the target has otherwise than it was declared, a line each.",
        examples=[["spec.replicas: wanted 2, found 5"]],
    )
    url: str = Field(
        description="Where others reach it: in a cluster by its Service; of containers of one machine, one that "
        "is ready, or empty."
    )
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = Field(description="Since when it is being deleted.")

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentView":
        return cls(**_fields(deployment))


class DeploymentDetail(DeploymentView):
    manifest: ManifestObject = Field(description="Of the newest revision, as it came.", examples=[EXAMPLE_MANIFEST])

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentDetail":
        return cls(**_fields(deployment), manifest=dict(deployment.current.manifest.source))


def _fields(deployment: Deployment) -> dict[str, Any]:
    current, rollout = deployment.current, deployment.rollout
    scaling = (deployment.effective or current).manifest.scaling
    autoscaled = None
    if scaling.max_replicas is not None:
        autoscaled = AutoscaledView(min=scaling.min_replicas, max=scaling.max_replicas)
    same = ("id", "user_id", "namespace", "agent_id", "status", "reason", "paused", "url")
    return {
        **{name: getattr(deployment, name) for name in (*same, "created_at", "updated_at", "deleted_at")},
        "replicas": rollout.replicas if deployment.replicas is None else deployment.replicas,
        "ready_replicas": rollout.ready_replicas,
        "autoscaled": autoscaled,
        "revision": current.number,
        "running_revision": deployment.effective.number if deployment.effective else None,
        "approval": current.approval,
        "image": current.image,
        "access_tier": current.manifest.access_tier,
        "auto_rollback": current.manifest.auto_rollback,
        "drift": list(rollout.drift),
    }


class DeploymentPage(BaseModel):
    deployments: list[DeploymentView] = Field(description="The newest first.")
    next_cursor: NextCursor


class RevisionView(BaseModel):
    number: int = Field(examples=[3])
    image: str = Field(examples=[_IMAGE])
    manifest: ManifestObject = Field(examples=[EXAMPLE_MANIFEST])
    cause: str = Field(description="Why there is this revision.", examples=["another image"])
    created_by: str = Field(description="Id of a user, or `platform`.")
    created_at: datetime
    approval: Approval
    decided_by: str | None = Field(description="Id of the administrator.")
    decided_at: datetime | None
    decision_reason: str
    outcome: RevisionOutcome = Field(description="What became of its rollout.")
    outcome_reason: str
    ended_at: datetime | None

    @classmethod
    def of(cls, revision: Revision) -> "RevisionView":
        same = ("number", "image", "cause", "created_by", "created_at", "approval", "decided_by", "decided_at")
        rest = ("decision_reason", "outcome", "outcome_reason", "ended_at")
        return cls(
            **{name: getattr(revision, name) for name in (*same, *rest)}, manifest=dict(revision.manifest.source)
        )


class RevisionPage(BaseModel):
    revisions: list[RevisionView] = Field(
        description="The newest first. The last 50 are kept, and the one that runs and the one that a rollback goes to."
    )
    next_cursor: NextNumber


class DeploymentEventView(BaseModel):
    number: int
    type: DeploymentEventType
    message: str
    revision: int = Field(description="The newest one at that time.")
    at: datetime

    @classmethod
    def of(cls, event: DeploymentEvent) -> "DeploymentEventView":
        return cls(number=event.number, type=event.type, message=event.message, revision=event.revision, at=event.at)


class DeploymentEventPage(BaseModel):
    events: list[DeploymentEventView] = Field(description="The newest first. The last 1,000 are kept.")
    next_cursor: NextNumber


class DeploymentExplained(BaseModel):
    text: str = Field(
        description="In words, why it is not as wanted, or that it is.", examples=["2 of 2 replicas are ready."]
    )
    deployment: DeploymentView
    looked_at: datetime | None = Field(description="When a controller last looked; null: none has.")

    @classmethod
    def of(cls, deployment: Deployment) -> "DeploymentExplained":
        return cls(
            text=explanation(deployment),
            deployment=DeploymentView.of(deployment),
            looked_at=deployment.rollout.seen_at,
        )


class DriftView(BaseModel):
    """It is shown and not mended: the next change of the deployment does that."""

    drift: list[str] = Field(
        description="A line each: the path, what was declared, what there is.",
        examples=[["spec.replicas: wanted 2, found 5"]],
    )
    looked_at: datetime | None = Field(description="When a controller last looked; null: none has.")


class ForgottenView(BaseModel):
    """What may be left of a deployment whose row was removed without waiting for the target."""

    id: str
    left: str = Field(description="What to look for, and where.")
