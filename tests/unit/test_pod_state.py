"""What pods say about themselves, release by release, and what the platform makes of it."""

from typing import Any

import pytest

from worker.sandbox.base import (
    Ending,
    SandboxError,
    SandboxEvicted,
    SandboxImageNotFound,
    SandboxQuotaExceeded,
    SandboxRefused,
    SandboxUnschedulable,
)
from worker.sandbox.kubernetes import pod_state
from worker.sandbox.kubernetes.pod_state import EndReason, PodEnd, Running, Waiting


def pod(phase: str, state: dict[str, Any] | None = None, *, deleting: bool = False, **status: Any) -> dict[str, Any]:
    metadata = {"name": "step-1-abcde"} | ({"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {})
    containers = [] if state is None else [{"name": "sandbox", "state": state}]
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": containers, **status}}


def waiting(reason: str, message: str = "") -> Waiting:
    state = pod_state.read(pod("Pending", {"waiting": {"reason": reason, "message": message}}))
    assert isinstance(state, Waiting)
    return state


def end_of(found: dict[str, Any]) -> PodEnd:
    state = pod_state.read(found)
    assert isinstance(state, PodEnd)
    return state


def terminated(code: int, reason: str, message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def test_a_pod_whose_container_runs_is_reported_by_its_name() -> None:
    assert pod_state.read(pod("Running", {"running": {}})) == Running("step-1-abcde")


def test_a_pod_that_was_just_made_waits() -> None:
    state = pod_state.read({"metadata": {"name": "p"}, "status": {}})
    assert isinstance(state, Waiting)
    assert not state.is_final


def test_no_place_is_reported_in_the_schedulers_words() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no cpu"}
    state = pod_state.read(pod("Pending", conditions=[condition]))
    assert isinstance(state, Waiting)
    assert "0/3 nodes: no cpu" in state.words
    assert isinstance(state.failure, SandboxUnschedulable)
    assert "SANDBOX_CPUS" in state.failure.message
    assert not state.is_final


@pytest.mark.parametrize(
    "message",
    [
        'failed to resolve reference "docker.io/x/y:1": docker.io/x/y:1: not found',
        "pull access denied, repository does not exist or may require authorization: server message: "
        "insufficient_scope: authorization failed",
        "Error response from daemon: manifest for x:1 not found: manifest unknown",
        "unexpected status code [manifests 1]: 401 Unauthorized",
    ],
)
def test_an_image_that_is_not_to_be_had_is_final_at_once(message: str) -> None:
    state = waiting("ErrImagePull", message)
    assert state.is_final
    assert isinstance(state.failure, SandboxImageNotFound)
    assert "SANDBOX_IMAGE" in state.failure.message


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("ErrImagePull", "dial tcp: lookup registry.example on 10.0.0.2:53: server misbehaving"),
        ("ErrImagePull", "unexpected status code [manifests 1]: 503 Service Unavailable"),
        ("ErrImagePull", "toomanyrequests: You have reached your pull rate limit"),
        ("ImagePullBackOff", 'Back-off pulling image "x:1"'),
    ],
)
def test_a_pull_that_may_yet_pass_is_waited_for(reason: str, message: str) -> None:
    state = waiting(reason, message)
    assert not state.is_final
    assert message in state.words
    assert isinstance(state.failure, SandboxImageNotFound)


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_a_name_that_is_no_image_is_final(reason: str) -> None:
    assert isinstance(waiting(reason).failure, SandboxImageNotFound)
    assert waiting(reason).is_final


@pytest.mark.parametrize("reason", ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"])
def test_a_container_that_cannot_be_made_is_refused_in_its_own_words(reason: str) -> None:
    state = waiting(reason, "image has non-numeric user")
    assert state.is_final
    assert type(state.failure) is SandboxRefused
    assert "image has non-numeric user" in state.failure.message


def test_an_ordinary_start_waits() -> None:
    assert not waiting("ContainerCreating").is_final


def test_memory_that_ran_out_is_an_outcome_of_the_command() -> None:
    outcome = end_of(pod("Failed", terminated(137, "OOMKilled"))).outcome(1.5)
    assert (outcome.ending, outcome.exit_code, outcome.duration_seconds) == (Ending.MEMORY, 137, 1.5)
    assert "SANDBOX_MEMORY_BYTES" in outcome.detail


@pytest.mark.parametrize(
    "message",
    [
        'Usage of EmptyDir volume "workspace" exceeds the limit "1Mi". ',
        'Container sandbox exceeded its local ephemeral storage limit "1Gi". ',
        "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
    ],
)
def test_an_eviction_for_its_own_disk_space_is_an_outcome_of_the_command(message: str) -> None:
    # Newer releases report every eviction by a condition as well.
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
    found = pod("Failed", terminated(137, "Error"), reason="Evicted", message=message, conditions=conditions)
    assert end_of(found).outcome(1).ending is Ending.DISK


@pytest.mark.parametrize(
    "status",
    [
        {"reason": "Evicted", "message": "The node was low on resource: memory. "},
        {"reason": "Terminated", "message": "Pod was terminated in response to imminent node shutdown."},
        {"reason": "Preempting", "message": "Preempted in order to admit critical pod"},
        {"reason": "OutOfcpu", "message": "Pod Node didn't have enough resource: cpu"},
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
    ],
)
def test_what_the_cluster_took_away_can_be_tried_again(status: dict[str, Any]) -> None:
    with pytest.raises(SandboxEvicted) as raised:
        end_of(pod("Failed", **status)).outcome(1)
    assert raised.value.retryable


def test_a_pod_on_a_lost_node_has_ended_for_us() -> None:
    found = pod("Running", {"running": {}}, deleting=True, reason="NodeLost", message="Node n is unresponsive")
    assert end_of(found).reason is EndReason.EVICTED


def test_a_pod_that_is_about_to_be_disrupted_has_ended_for_us() -> None:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
    assert end_of(pod("Running", {"running": {}}, conditions=conditions)).reason is EndReason.EVICTED


def test_a_deadline_of_the_pod_is_a_timeout() -> None:
    found = pod("Failed", terminated(137, "Error"), reason="DeadlineExceeded", message="active on the node too long")
    assert end_of(found).outcome(1).ending is Ending.TIMEOUT


def test_a_first_process_that_ended_by_itself_is_an_error_with_its_last_words() -> None:
    end = end_of(pod("Failed", terminated(3, "Error", "no space left\n")))
    assert end.exit_code == 3
    with pytest.raises(SandboxError, match="code 3: no space left"):
        end.outcome(1)


def test_an_image_without_python_is_refused() -> None:
    message = 'exec: "python3": executable file not found in $PATH'
    error = end_of(pod("Failed", terminated(128, "StartError", message))).error()
    assert isinstance(error, SandboxRefused)
    assert "SANDBOX_IMAGE" in error.message
    assert message in error.message


def test_the_exit_code_of_a_pod_that_is_being_deleted_means_nothing() -> None:
    assert end_of(pod("Failed", terminated(137, "Error"), deleting=True)).reason is EndReason.DELETED


def test_a_pod_that_is_being_deleted_runs_until_it_has_ended() -> None:
    assert pod_state.read(pod("Running", {"running": {}}, deleting=True)) == Running("step-1-abcde")


def failed_job(reason: str) -> dict[str, Any]:
    return {
        "spec": {"activeDeadlineSeconds": 30},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason}]},
    }


def test_a_pod_that_went_at_its_jobs_deadline_is_a_timeout() -> None:
    outcome = pod_state.deleted(failed_job("DeadlineExceeded")).outcome(1)
    assert outcome.ending is Ending.TIMEOUT
    assert "30 seconds" in outcome.detail


@pytest.mark.parametrize("job", [None, {"status": {}}, failed_job("BackoffLimitExceeded")])
def test_a_pod_that_was_deleted_otherwise_can_be_tried_again(job: dict[str, Any] | None) -> None:
    with pytest.raises(SandboxError) as raised:
        pod_state.deleted(job).outcome(1)
    assert raised.value.retryable


def test_a_quota_is_waited_for() -> None:
    state = pod_state.no_pod('pods "x" is forbidden: exceeded quota: tools, requested: cpu=1, used: cpu=8')
    assert not state.is_final
    assert isinstance(state.failure, SandboxQuotaExceeded)
    assert "used: cpu=8" in state.words


@pytest.mark.parametrize(
    "message",
    [
        'pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi',
        'pods "x" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false',
    ],
)
def test_what_the_namespace_does_not_allow_is_final(message: str) -> None:
    state = pod_state.no_pod(message)
    assert state.is_final
    assert message in state.failure.message
    assert not state.failure.retryable


@pytest.mark.parametrize(
    "message",
    [
        "",
        "Internal error occurred: failed calling webhook",
        'pods "x" is forbidden: error looking up service account tools/default: serviceaccount "default" not found',
    ],
)
def test_a_pod_that_is_not_made_for_another_reason_is_waited_for(message: str) -> None:
    state = pod_state.no_pod(message)
    assert not state.is_final
    assert isinstance(state.failure, SandboxUnschedulable)
