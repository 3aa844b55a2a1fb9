"""What is to be done about a deployment, and how it is: decisions over its row and what its target has."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from enum import StrEnum

from backplane.domain.deployments import (
    REASON_CHARS,
    Approval,
    Deployment,
    DeploymentEventType,
    DeploymentStatus,
    RevisionOutcome,
    Rollout,
    approval_reason,
)
from controller.deployments.target import SeenDeployment


class DeploymentStep(StrEnum):
    NOTHING = "nothing"
    APPLY = "apply"
    REMOVE = "remove"


def step_of(deployment: Deployment, seen: SeenDeployment) -> DeploymentStep:
    """A revision that waits for an administrator leaves the one before it running."""
    if deployment.deleted_at is not None:
        return DeploymentStep.REMOVE
    if deployment.paused or deployment.effective is None or seen.is_as_declared:
        return DeploymentStep.NOTHING
    return DeploymentStep.APPLY


def rollout_since(before: Rollout, seen: Rollout, now: datetime) -> Rollout:
    """`seen`, with the time at which its revision was first there."""
    if not seen.revision:
        return seen
    if before.revision == seen.revision and before.began_at is not None:
        return replace(seen, began_at=before.began_at)
    return replace(seen, began_at=now)


def refused(deployment: Deployment, rollout: Rollout, reason: str) -> Rollout:
    """The target does not take the revision that it was asked for; what it has of an older one goes on."""
    number = deployment.effective.number if deployment.effective else 0
    return replace(rollout, revision=number, is_complete=False, has_failed=True, reason=reason)


def status_of(deployment: Deployment, rollout: Rollout) -> tuple[DeploymentStatus, str]:
    """How it is, and why it is not as wanted; no reason: it is."""
    status, reason = _status_of(deployment, rollout)
    if deployment.paused and deployment.deleted_at is None:
        reason = f"it is paused, so nothing is changed; {reason}".removesuffix("; ")
    return status, reason[:REASON_CHARS]


def _status_of(deployment: Deployment, rollout: Rollout) -> tuple[DeploymentStatus, str]:
    current, running = deployment.current, deployment.effective
    if deployment.deleted_at is not None:
        return DeploymentStatus.STOPPED, _because("it is being deleted", rollout.reason)
    if deployment.awaits_approval:
        return DeploymentStatus.DEPLOYING, approval_reason(deployment)
    if current.approval is Approval.REJECTED or running is None:
        return DeploymentStatus.FAILED, _because(
            f"an administrator has rejected revision {current.number}", current.decision_reason
        )
    if rollout.revision != running.number:
        return DeploymentStatus.DEPLOYING, _because(f"revision {running.number} is not there yet", rollout.reason)
    if rollout.has_failed and not (rollout.replicas and deployment.replicas != 0):
        return DeploymentStatus.FAILED, rollout.reason
    if deployment.replicas == 0:
        if rollout.is_complete:
            return DeploymentStatus.STOPPED, "no replica is wanted"
        return DeploymentStatus.DEPLOYING, _because("replicas are ending", rollout.reason)
    if rollout.is_complete:
        return DeploymentStatus.RUNNING, ""
    missing = f"{rollout.ready_replicas} of {rollout.replicas} replicas are ready"
    was_there = running.outcome is RevisionOutcome.ROLLED_OUT
    if was_there and rollout.ready_replicas:
        return DeploymentStatus.RUNNING, _because(missing, rollout.reason)
    if rollout.has_failed and not was_there:
        return DeploymentStatus.FAILED, _because(
            f"revision {running.number} does not roll out, {missing}", rollout.reason
        )
    if was_there and (rollout.has_failed or rollout.reason):
        return DeploymentStatus.FAILED, _because(missing, rollout.reason)
    if rollout.updated_replicas < rollout.replicas:
        missing = f"{rollout.updated_replicas} of {rollout.replicas} replicas are of revision {running.number}"
    return DeploymentStatus.DEPLOYING, _because(missing, rollout.reason)


def outcome_of(deployment: Deployment, rollout: Rollout) -> RevisionOutcome | None:
    """What the rollout of the effective revision has just come to; None: nothing new. With no replica wanted nobody
    knows whether it works. One that has failed may roll out yet: a registry is back, a Secret is there."""
    running = deployment.effective
    if deployment.deleted_at is not None or running is None or rollout.revision != running.number:
        return None
    if running.outcome is RevisionOutcome.PENDING and rollout.has_failed:
        return RevisionOutcome.FAILED
    if deployment.replicas == 0 or not rollout.is_complete:
        return None
    if running.outcome in (RevisionOutcome.PENDING, RevisionOutcome.FAILED):
        return RevisionOutcome.ROLLED_OUT
    return None


def wants_rollback(deployment: Deployment, outcome: RevisionOutcome | None) -> bool:
    """A revision that fails while another one waits for approval is left to people."""
    if outcome is not RevisionOutcome.FAILED or deployment.paused or deployment.awaits_approval:
        return False
    return deployment.current.manifest.auto_rollback


def events_of(
    before: Deployment, status: DeploymentStatus, reason: str, rollout: Rollout
) -> Iterator[tuple[DeploymentEventType, str]]:
    """What has changed by itself since the row was written."""
    was, running = before.rollout, before.effective
    if status is DeploymentStatus.STOPPED and before.status is not status and before.deleted_at is None:
        yield DeploymentEventType.STOPPED, reason
    if running is None or before.deleted_at is not None:
        return
    if running.outcome is RevisionOutcome.ROLLED_OUT and was.revision == rollout.revision == running.number:
        if rollout.ready_replicas < min(was.ready_replicas, rollout.replicas):
            yield DeploymentEventType.DEGRADED, reason
        elif status is DeploymentStatus.RUNNING and before.status is DeploymentStatus.FAILED:
            yield DeploymentEventType.RECOVERED, f"{rollout.ready_replicas} of {rollout.replicas} replicas are ready"
    if new := [line for line in rollout.drift if line not in was.drift]:
        yield DeploymentEventType.DRIFTED, "; ".join(new)[:REASON_CHARS]


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
