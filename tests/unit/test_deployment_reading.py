"""How a rollout goes, read from objects of a cluster: each case as the cluster writes it."""

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from backplane.domain.deployments import Rollout
from controller.deployments.kubernetes.objects import CONTENT, ClusterRules, declared_objects
from controller.deployments.kubernetes.reading import HOPELESS_AFTER, LiveObjects, is_as_declared, rollout_of, surplus
from controller.deployments.kubernetes.target import server_kinds
from tests.deployed_agents import NOW, deployment_of

Json = dict[str, Any]

DECLARED = declared_objects(
    deployment_of(replicas=2), ClusterRules("f" * 32, "agents"), server_kinds({"policy/v1", "autoscaling/v2"}), ""
)
READY = {"conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": []}
LATE = {
    "type": "Progressing",
    "status": "False",
    "reason": "ProgressDeadlineExceeded",
    "message": "timed out progressing",
}


def counts(replicas: int, updated: int, available: int, *, observed: int = 3, **more: Any) -> Json:
    numbers = {"replicas": replicas, "updatedReplicas": updated, "availableReplicas": available}
    return {**numbers, "readyReplicas": available, "observedGeneration": observed, **more}


def pod(status: Json, *, age: timedelta = timedelta(0), content: str | None = None, **metadata: Any) -> Json:
    template = DECLARED.objects[-1][1]["spec"]["template"]["metadata"]["annotations"]
    made = {
        "name": "greeter-1",
        "annotations": {CONTENT: content or template[CONTENT]},
        "creationTimestamp": (NOW - age).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {"metadata": made | metadata, "status": status}


def waiting(reason: str, *, restarts: int = 0, message: str = "", last: str = "") -> Json:
    container: Json = {"ready": False, "restartCount": restarts, "state": {"waiting": {"reason": reason}}}
    container["state"]["waiting"]["message"] = message
    container["lastState"] = {"terminated": {"exitCode": 1, "message": last}} if last else {}
    return {"containerStatuses": [container]}


def live(status: Json, *pods: Json) -> LiveObjects:
    objects = {(kind.name, one["metadata"]["name"]): copy.deepcopy(one) for kind, one in DECLARED.objects}
    made = next(one for (kind, _), one in objects.items() if kind == "Deployment")
    made["metadata"]["generation"] = 3
    made["status"] = status
    return LiveObjects(objects, pods)


def read(status: Json, *pods: Json) -> Rollout:
    return rollout_of(DECLARED, live(status, *pods), NOW)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (counts(2, 2, 2), True),
        (counts(2, 2, 2, observed=2), False),
        (counts(2, 1, 2), False),
        (counts(3, 2, 2), False),
        (counts(2, 2, 1), False),
        ({}, False),
    ],
)
def test_a_rollout_is_complete_when_all_is_new_available_and_nothing_old_is_left(status: Json, expected: bool) -> None:
    assert read(status).is_complete is expected


def test_what_is_not_there_yet_is_said_so() -> None:
    rollout = rollout_of(DECLARED, LiveObjects(), NOW)
    assert (rollout.revision, rollout.is_complete, rollout.has_failed) == (0, False, False)
    assert rollout.reason


def test_a_rollout_fails_when_the_clusters_deadline_is_over() -> None:
    rollout = read(counts(2, 1, 1, conditions=[LATE]), pod(READY))
    assert rollout.has_failed
    assert "timed out progressing" in rollout.reason
    assert not read(counts(2, 1, 1, conditions=[LATE], observed=2)).has_failed
    assert not read(counts(2, 2, 2, conditions=[LATE])).has_failed


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (waiting("ImagePullBackOff", message="no such image"), True),
        (waiting("InvalidImageName"), True),
        (waiting("CreateContainerConfigError", message="secret is missing"), True),
        (waiting("CrashLoopBackOff", restarts=3), True),
        (waiting("CrashLoopBackOff", restarts=2), False),
        (waiting("ContainerCreating"), False),
    ],
)
def test_a_rollout_fails_early_only_when_no_pod_can_start(status: Json, expected: bool) -> None:
    assert read(counts(2, 1, 0), pod(status, age=HOPELESS_AFTER)).has_failed is expected
    assert not read(counts(2, 1, 0), pod(status, age=HOPELESS_AFTER - timedelta(seconds=1))).has_failed
    assert not read(counts(2, 2, 1), pod(status, age=HOPELESS_AFTER), pod(READY)).has_failed


def test_an_old_pod_that_cannot_start_is_not_the_new_ones_fault() -> None:
    old = pod(waiting("ImagePullBackOff"), age=HOPELESS_AFTER, content="older")
    assert not read(counts(2, 1, 0), old).has_failed


def test_a_pod_that_is_ending_gives_no_reason() -> None:
    ending = pod(waiting("CrashLoopBackOff", restarts=9), deletionTimestamp="2026-11-30T12:00:00Z")
    assert read(counts(2, 1, 0), ending).reason == ""


def test_the_reason_has_the_nodes_words_and_what_the_container_printed_last() -> None:
    crashed = waiting("CrashLoopBackOff", restarts=3, message="back-off", last="Traceback\n  the key is missing\n")
    reason = read(counts(2, 1, 0), pod(crashed)).reason
    assert "CrashLoopBackOff: back-off" in reason
    assert "Traceback | the key is missing" in reason


def test_a_quota_that_is_used_up_is_the_reason_and_fails_after_a_while() -> None:
    since = (NOW - HOPELESS_AFTER).strftime("%Y-%m-%dT%H:%M:%SZ")
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota", "lastTransitionTime": since}
    rollout = read(counts(0, 0, 0, conditions=[failure]))
    assert "exceeded quota" in rollout.reason
    assert rollout.has_failed
    recent = {**failure, "lastTransitionTime": NOW.strftime("%Y-%m-%dT%H:%M:%SZ")}
    assert not read(counts(0, 0, 0, conditions=[recent])).has_failed


def test_all_is_as_declared_until_an_object_is_missing_or_too_many() -> None:
    there = live(counts(2, 2, 2))
    assert is_as_declared(DECLARED, there)
    for key in there.objects:
        assert not is_as_declared(
            DECLARED, replace(there, objects={one: it for one, it in there.objects.items() if one != key})
        )
    more = {**there.objects, ("HorizontalPodAutoscaler", "greeter"): {}}
    assert not is_as_declared(DECLARED, replace(there, objects=more))
    assert surplus(DECLARED, replace(there, objects=more)) == [("HorizontalPodAutoscaler", "greeter")]


def test_what_was_changed_is_drift_and_still_as_declared() -> None:
    there = live(counts(5, 5, 5))
    made = there.deployment
    assert made is not None
    made["spec"]["replicas"] = 5
    assert rollout_of(DECLARED, there, NOW).drift == ("Deployment spec.replicas: wanted 2, found 5",)
    assert is_as_declared(DECLARED, there)
