"""Rows of deployments as values, and back."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, select

from backplane.domain.agent_manifest import AgentManifest
from backplane.domain.deployments import (
    Approval,
    Deployment,
    DeploymentEvent,
    DeploymentEventType,
    DeploymentStatus,
    LogLine,
    Revision,
    RevisionOutcome,
    Rollout,
)
from backplane.errors import NotFound
from backplane.store.deployments.tables import deployment_revisions, deployments

_current = deployment_revisions.alias("current")
_effective = deployment_revisions.alias("effective")
_AS_THEY_ARE = frozenset(
    {
        *("id", "user_id", "agent_id", "namespace", "replicas", "reason", "paused"),
        *("created_at", "updated_at", "deleted_at", "delete_grace_seconds", "version"),
    }
)


def whole() -> Select[Any]:
    """Deployments with their current and their effective revisions."""
    columns = [
        *deployments.c,
        *(column.label(f"current_{column.name}") for column in _current.c),
        *(column.label(f"effective_{column.name}") for column in _effective.c),
    ]
    of_current = and_(_current.c.deployment_id == deployments.c.id, _current.c.number == deployments.c.revision)
    # Mostly the two are one, which is not read twice.
    of_effective = and_(
        _effective.c.deployment_id == deployments.c.id,
        _effective.c.number == deployments.c.effective,
        deployments.c.effective != deployments.c.revision,
    )
    joined = deployments.join(_current, of_current).outerjoin(_effective, of_effective)
    return select(*columns).select_from(joined)


def deployment_of(row: Row[Any]) -> Deployment:
    values = dict(row._mapping)
    current = revision_of(values, "current_")
    effective = current if row.effective == row.revision else None
    if row.effective_number is not None:
        effective = revision_of(values, "effective_")
    return Deployment(
        **{name: values[name] for name in _AS_THEY_ARE},
        current=current,
        effective=effective,
        status=DeploymentStatus(row.status),
        rollout=Rollout.of_json(row.rollout),
    )


def revision_of(values: Mapping[str, Any], prefix: str = "") -> Revision:
    names = (
        *("number", "image", "cause", "created_by", "created_at", "restarted", "decided_by", "decided_at"),
        *("decision_reason", "outcome_reason", "ended_at"),
    )
    return Revision(
        **{name: values[f"{prefix}{name}"] for name in names},
        manifest=AgentManifest.of_json(values[f"{prefix}manifest"]),
        approval=Approval(values[f"{prefix}approval"]),
        outcome=RevisionOutcome(values[f"{prefix}outcome"]),
    )


def revision_values(deployment_id: str, revision: Revision) -> dict[str, Any]:
    return {
        "deployment_id": deployment_id,
        "number": revision.number,
        "image": revision.image,
        "manifest": revision.manifest.as_json(),
        "digest": revision.digest,
        "restarted": revision.restarted,
        "cause": revision.cause,
        "created_by": revision.created_by,
        "created_at": revision.created_at,
        "approval": revision.approval.value,
        "decided_by": revision.decided_by,
        "decided_at": revision.decided_at,
        "decision_reason": revision.decision_reason,
        "outcome": revision.outcome.value,
        "outcome_reason": revision.outcome_reason,
        "ended_at": revision.ended_at,
    }


def event_of(row: Row[Any]) -> DeploymentEvent:
    type = DeploymentEventType(row.type)
    return DeploymentEvent(row.number, row.deployment_id, type, row.message, row.revision, row.at)


def line_of(row: Any) -> LogLine:
    return LogLine(row.number, row.replica, row.text, row.at, row.left_out)


def locked(connection: Connection, deployment_id: str) -> Deployment:
    """The deployment, which nobody else changes until the commit. Raises NotFound."""
    which = select(deployments.c.id).where(deployments.c.id == deployment_id).with_for_update()
    if connection.scalar(which) is None:
        raise missing(deployment_id)
    # Read after the lock, so that it is as the one before has left it.
    return deployment_of(connection.execute(whole().where(deployments.c.id == deployment_id)).one())


def missing(deployment_id: str) -> NotFound:
    return NotFound(f"there is no deployment {deployment_id} of yours; GET /api/deployments lists those there are")
