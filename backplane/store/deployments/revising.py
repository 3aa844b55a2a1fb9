"""How a deployment comes to another revision: by its users, by a decision, by the platform."""

from dataclasses import replace
from typing import NamedTuple

from backplane.domain.agent_manifest import AgentManifest
from backplane.domain.deployments import (
    PLATFORM,
    Approval,
    DeploymentEventType,
    DeploymentStatus,
    Revision,
    RevisionOutcome,
)
from backplane.domain.users import User
from backplane.store.deployments.change import DeploymentChange


class RevisionContent(NamedTuple):
    image: str
    manifest: AgentManifest


def revise(change: DeploymentChange, by: User, content: RevisionContent, cause: str, *, restarts: int = 0) -> None:
    """As a user wants it. `restarts`: how many times more than before its replicas are started anew."""
    current = change.after.current
    revision = Revision(
        number=current.number + 1,
        image=content.image,
        manifest=content.manifest,
        cause=cause,
        created_by=by.id,
        created_at=change.at,
        restarted=current.restarted + restarts,
    )
    change.new_revision(change.approved(revision, by))
    change.event(DeploymentEventType.REVISION, f"revision {revision.number}: {cause}, by {by.name}")


def go_back(change: DeploymentChange, older: Revision, cause: str) -> None:
    """As the platform does it, to a revision that may run. Nothing is started anew where its content still runs."""
    change.new_revision(
        replace(
            older,
            number=change.after.current.number + 1,
            cause=cause,
            created_by=PLATFORM,
            created_at=change.at,
            outcome=RevisionOutcome.PENDING,
            outcome_reason="",
            ended_at=None,
        )
    )


def decide(change: DeploymentChange, by: User, *, approve: bool, reason: str) -> None:
    """Of the current revision, which waits for approval."""
    pending = change.before.current
    decided = replace(
        pending,
        approval=Approval.APPROVED if approve else Approval.REJECTED,
        decided_by=by.id,
        decided_at=change.at,
        decision_reason=reason,
    )
    because = f": {reason}" if reason else ""
    if not approve:
        said = f"an administrator rejected it{because}"
        decided = replace(decided, outcome=RevisionOutcome.FAILED, outcome_reason=said, ended_at=change.at)
    change.change_revision(
        pending.number,
        approval=decided.approval.value,
        decided_by=decided.decided_by,
        decided_at=decided.decided_at,
        decision_reason=decided.decision_reason,
        outcome=decided.outcome.value,
        outcome_reason=decided.outcome_reason,
        ended_at=decided.ended_at,
    )
    change.wants(current=decided)
    said = f"revision {pending.number}, by {by.name}{because}"
    if approve:
        change.take_effect(decided)
        change.event(DeploymentEventType.APPROVED, said)
        return
    change.event(DeploymentEventType.REJECTED, said)
    if (running := change.before.effective) is not None:
        go_back(change, running, f"revision {pending.number} was rejected; back to revision {running.number}")
    else:
        rejected = f"revision {pending.number} was rejected{because}"
        change.wants(status=DeploymentStatus.FAILED, reason=rejected)
