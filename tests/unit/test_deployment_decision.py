"""What is done about a deployment and how it is: each case of the decisions, as tables."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from backplane.domain.deployments import (
    Approval,
    Deployment,
    DeploymentEventType,
    DeploymentStatus,
    RevisionOutcome,
    Rollout,
)
from controller.deployments.decision import (
    DeploymentStep,
    events_of,
    outcome_of,
    refused,
    rollout_since,
    status_of,
    step_of,
    wants_rollback,
)
from controller.deployments.target import SeenDeployment, replicas_wanted
from tests.deployed_agents import NOW, agent_manifest, deployment_of, revision_of

DEPLOYING, RUNNING = DeploymentStatus.DEPLOYING, DeploymentStatus.RUNNING
FAILED, STOPPED = DeploymentStatus.FAILED, DeploymentStatus.STOPPED
COMPLETE = Rollout(1, 2, 2, 2, is_complete=True)
HALF = Rollout(1, 2, 1, 2)
NONE = Rollout(1, 2, 0, 2)
THERE = revision_of(agent_manifest(), outcome=RevisionOutcome.ROLLED_OUT)
WAITS = revision_of(agent_manifest(tier="tier_3_write_elevated"), 2, approval=Approval.PENDING)
REJECTED = replace(WAITS, approval=Approval.REJECTED, decision_reason="too much")
NEW = revision_of(agent_manifest(), 2)


@pytest.mark.parametrize(
    ("deployment", "is_as_declared", "expected"),
    [
        (deployment_of(), False, DeploymentStep.APPLY),
        (deployment_of(), True, DeploymentStep.NOTHING),
        (deployment_of(paused=True), False, DeploymentStep.NOTHING),
        (deployment_of(WAITS), False, DeploymentStep.NOTHING),
        (deployment_of(WAITS, effective=THERE), False, DeploymentStep.APPLY),
        (deployment_of(deleted_at=NOW), True, DeploymentStep.REMOVE),
        (deployment_of(deleted_at=NOW, paused=True), True, DeploymentStep.REMOVE),
    ],
)
def test_the_step_of_a_deployment(deployment: Deployment, is_as_declared: bool, expected: DeploymentStep) -> None:
    assert step_of(deployment, SeenDeployment(Rollout(), is_as_declared)) is expected


@pytest.mark.parametrize(
    ("deployment", "rollout", "status", "words"),
    [
        (deployment_of(), Rollout(), DEPLOYING, "revision 1 is not there yet"),
        (deployment_of(NEW), COMPLETE, DEPLOYING, "revision 2 is not there yet"),
        (deployment_of(replicas=2), COMPLETE, RUNNING, ""),
        (deployment_of(replicas=2), HALF, DEPLOYING, "1 of 2 replicas are ready"),
        (deployment_of(replicas=2), replace(HALF, updated_replicas=1), DEPLOYING, "1 of 2 replicas are of revision 1"),
        (deployment_of(replicas=2), replace(NONE, reason="no node"), DEPLOYING, "no node"),
        (deployment_of(replicas=2), replace(NONE, has_failed=True, reason="no image"), FAILED, "no image"),
        (deployment_of(replicas=2), replace(HALF, has_failed=True, reason="no image"), FAILED, "does not roll out"),
        (deployment_of(THERE, replicas=2), HALF, RUNNING, "1 of 2 replicas are ready"),
        (deployment_of(THERE, replicas=2), replace(HALF, has_failed=True, reason="quota"), RUNNING, "quota"),
        (deployment_of(THERE, replicas=2), NONE, DEPLOYING, "0 of 2 replicas are ready"),
        (deployment_of(THERE, replicas=2), replace(NONE, reason="it crashed"), FAILED, "it crashed"),
        (deployment_of(replicas=0), Rollout(1, 0, is_complete=True), STOPPED, "no replica is wanted"),
        (deployment_of(replicas=0), Rollout(1, 0, 1), DEPLOYING, "replicas are ending"),
        (deployment_of(WAITS), Rollout(), DEPLOYING, "waits until an administrator approves it"),
        (deployment_of(WAITS, effective=THERE), COMPLETE, DEPLOYING, "waits until an administrator approves it"),
        (deployment_of(REJECTED), Rollout(), FAILED, "too much"),
        (deployment_of(deleted_at=NOW), replace(HALF, reason="still there: 2 Pods"), STOPPED, "still there: 2 Pods"),
        (deployment_of(THERE, paused=True), HALF, RUNNING, "it is paused"),
    ],
)
def test_the_status_of_a_deployment(
    deployment: Deployment, rollout: Rollout, status: DeploymentStatus, words: str
) -> None:
    found, reason = status_of(deployment, rollout)
    assert found is status
    assert words in reason
    assert bool(words) == bool(reason)


@pytest.mark.parametrize("replicas", [1, 0])
@pytest.mark.parametrize("there", [Rollout(), COMPLETE])
def test_a_revision_that_the_target_refuses_has_failed(there: Rollout, replicas: int) -> None:
    deployment = deployment_of(NEW, replicas=replicas)
    rollout = refused(deployment, there, "exceeded quota")
    assert status_of(deployment, rollout)[0] is FAILED
    assert "exceeded quota" in status_of(deployment, rollout)[1]
    assert outcome_of(deployment, rollout) is RevisionOutcome.FAILED


@pytest.mark.parametrize(
    ("deployment", "rollout", "expected"),
    [
        (deployment_of(), COMPLETE, RevisionOutcome.ROLLED_OUT),
        (deployment_of(), HALF, None),
        (deployment_of(), replace(HALF, has_failed=True), RevisionOutcome.FAILED),
        (deployment_of(NEW), COMPLETE, None),
        (deployment_of(THERE), COMPLETE, None),
        (deployment_of(THERE), replace(NONE, has_failed=True), None),
        (deployment_of(replace(THERE, outcome=RevisionOutcome.FAILED)), COMPLETE, RevisionOutcome.ROLLED_OUT),
        (deployment_of(replicas=0), Rollout(1, 0, is_complete=True), None),
        (deployment_of(deleted_at=NOW), COMPLETE, None),
        (deployment_of(WAITS), Rollout(), None),
    ],
)
def test_the_outcome_of_a_revision(deployment: Deployment, rollout: Rollout, expected: RevisionOutcome | None) -> None:
    assert outcome_of(deployment, rollout) is expected


@pytest.mark.parametrize(
    ("wishes", "values", "expected"),
    [(True, {}, True), (False, {}, False), (True, {"paused": True}, False)],
)
def test_a_failed_revision_goes_back_where_it_asks_for_it(wishes: bool, values: dict[str, Any], expected: bool) -> None:
    deployment = deployment_of(revision_of(agent_manifest(auto_rollback=wishes)), **values)
    assert wants_rollback(deployment, RevisionOutcome.FAILED) is expected
    assert not wants_rollback(deployment, RevisionOutcome.ROLLED_OUT)
    assert not wants_rollback(deployment, None)


def test_a_rollout_began_when_its_revision_was_first_there() -> None:
    later = NOW + timedelta(minutes=1)
    first = rollout_since(Rollout(), HALF, NOW)
    assert first.began_at == NOW
    assert rollout_since(first, COMPLETE, later).began_at == NOW
    assert rollout_since(first, replace(HALF, revision=2), later).began_at == later
    assert rollout_since(first, Rollout(), later).began_at is None


def test_what_changes_by_itself_becomes_an_event_once() -> None:
    there = deployment_of(THERE, replicas=2, status=RUNNING, rollout=COMPLETE)
    assert list(events_of(there, RUNNING, "", COMPLETE)) == []
    assert list(events_of(there, RUNNING, "one is gone", HALF)) == [(DeploymentEventType.DEGRADED, "one is gone")]
    half = replace(there, rollout=HALF)
    assert list(events_of(half, RUNNING, "one is gone", HALF)) == []
    assert [type for type, _ in events_of(half, FAILED, "all are", NONE)] == [DeploymentEventType.DEGRADED]
    failed = replace(there, status=FAILED, rollout=NONE)
    assert [type for type, _ in events_of(failed, RUNNING, "", COMPLETE)] == [DeploymentEventType.RECOVERED]


def test_drift_is_an_event_when_it_is_new() -> None:
    drifted = replace(COMPLETE, drift=("Service spec.type: wanted ClusterIP, found NodePort",))
    there = deployment_of(THERE, replicas=2, status=RUNNING, rollout=COMPLETE)
    assert [type for type, _ in events_of(there, RUNNING, "", drifted)] == [DeploymentEventType.DRIFTED]
    assert list(events_of(replace(there, rollout=drifted), RUNNING, "", drifted)) == []


def test_fewer_replicas_that_were_asked_for_are_no_degradation() -> None:
    there = deployment_of(THERE, replicas=1, status=RUNNING, rollout=COMPLETE)
    assert list(events_of(there, RUNNING, "", Rollout(1, 1, 1, 1, is_complete=True))) == []


def test_the_number_of_replicas_is_that_of_the_revision_that_may_run() -> None:
    scaled = revision_of(agent_manifest(scaling={"min_replicas": 2, "max_replicas": 5}))
    assert replicas_wanted(deployment_of(replicas=3)) == 3
    assert replicas_wanted(deployment_of(scaled, replicas=None)) is None
    assert replicas_wanted(deployment_of(WAITS, effective=scaled, replicas=3)) is None
    assert replicas_wanted(deployment_of(scaled, effective=THERE, replicas=None)) == 1
