"""What a sandbox's pod is doing, read from the pod as the API server gives it, in the platform's own terms.

Pure: JSON in, values out. Kubernetes says why something does not start or has ended in a dozen places and in words that
differ between releases and container engines; all that knowledge is here. What is not recognised is never guessed to be
final: a pod that waits goes on waiting, with the words that Kubernetes has for it, until its start time is over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from worker.sandbox.base import (
    Ending,
    Outcome,
    SandboxError,
    SandboxEvicted,
    SandboxImageNotFound,
    SandboxQuotaExceeded,
    SandboxRefused,
    SandboxUnschedulable,
)

Json = Mapping[str, Any]

KILLED = 128 + 9

NO_SUCH_IMAGE = "check SANDBOX_IMAGE, and SANDBOX_PULL_SECRETS for a registry that wants credentials"
NO_PLACE = (
    "lower SANDBOX_CPUS or SANDBOX_MEMORY_BYTES, check SANDBOX_NODE_SELECTOR and SANDBOX_TOLERATIONS, or add nodes"
)
NOT_IN_TIME = "a longer SANDBOX_START_SECONDS gives it more time"


@dataclass(frozen=True, slots=True)
class Waiting:
    """No process runs yet. `words` say why, for people; `failure` is what this is once the start time is over, and
    `is_final` that waiting will not help."""

    words: str
    failure: SandboxError
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    pod: str


class EndReason(StrEnum):
    EXITED = "exited"
    MEMORY = "memory"
    DISK = "disk"
    DEADLINE = "deadline"
    EVICTED = "evicted"
    REFUSED = "refused"
    DELETED = "deleted"
    TAKEN = "taken"
    """It still runs, for another worker that has the run now."""


@dataclass(frozen=True, slots=True)
class PodEnd:
    """Why a sandbox's pod runs no more. `exit_code` is its first process'; `message` is for people."""

    reason: EndReason
    message: str
    exit_code: int = KILLED

    def outcome(self, duration_seconds: float) -> Outcome:
        """The outcome of the command that ran in it. Raises SandboxError where the command is not to blame."""
        match self.reason:
            case EndReason.MEMORY:
                return Outcome(self.exit_code, Ending.MEMORY, duration_seconds, self.message)
            case EndReason.DISK:
                return Outcome(self.exit_code, Ending.DISK, duration_seconds, self.message)
            case EndReason.DEADLINE:
                return Outcome(self.exit_code, Ending.TIMEOUT, duration_seconds, self.message)
            case _:
                raise self.error()

    def error(self) -> SandboxError:
        """The same for a pod in which nothing has run yet: whatever ended it, it was no command."""
        match self.reason:
            case EndReason.EVICTED:
                return SandboxEvicted(self.message)
            case EndReason.REFUSED:
                return SandboxRefused(self.message)
            case _:
                return SandboxError(self.message)


PodState = Waiting | Running | PodEnd


def read(pod: Json) -> PodState:
    """What a pod is doing, by its JSON."""
    status = pod.get("status") or {}
    container = _container(status)
    state = container.get("state") or {}
    phase = status.get("phase", "Pending")
    if end := _end(pod, status, state, phase):
        return end
    if "running" in state:
        return Running(pod["metadata"]["name"])
    return _waiting(status, state.get("waiting") or {})


def deleted(job: Json | None) -> PodEnd:
    """Why a pod is gone, by its Job, where that still exists."""
    if job is not None and failed_condition(job) == "DeadlineExceeded":
        seconds = job.get("spec", {}).get("activeDeadlineSeconds")
        return PodEnd(EndReason.DEADLINE, f"its Job was stopped at its deadline of {seconds} seconds")
    return PodEnd(EndReason.DELETED, "the pod of the sandbox was deleted; the step can be tried again")


def failed_condition(job: Json) -> str:
    """The reason for which a Job has failed; empty where it has not."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition.get("type") == "Failed" and condition.get("status") == "True":
            return str(condition.get("reason") or "Failed")
    return ""


def is_finished(job: Json) -> bool:
    return any(
        condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True"
        for condition in job.get("status", {}).get("conditions") or ()
    )


def no_pod(message: str) -> Waiting:
    """A Job has no pod yet. `message` is of its event FailedCreate; empty where it has none."""
    if not message:
        words = "no pod was made for the Job yet"
        advice = "look at the cluster's controller manager; " + NOT_IN_TIME
        return Waiting(words, SandboxUnschedulable(f"{words}: {advice}"))
    if "exceeded quota" in message:
        words = f"the quota of the namespace is used up: {message}"
        advice = (
            "it comes free as other sandboxes end; raise the ResourceQuota, or lower SANDBOX_MEMORY_BYTES or others"
        )
        return Waiting(words, SandboxQuotaExceeded(f"{words}; {advice}"))
    # The account of a namespace that was just made comes a moment after it.
    is_early = "error looking up service account" in message
    if not is_early and ("forbidden" in message or "violates" in message or "is invalid" in message):
        words = f"the namespace refuses such a pod: {message}"
        advice = "its LimitRange and Pod Security level must allow what SANDBOX_* settings ask for"
        return Waiting(words, SandboxRefused(f"{words}; {advice}"), is_final=True)
    words = f"no pod can be made: {message}"
    return Waiting(words, SandboxUnschedulable(f"{words}; {NOT_IN_TIME}"))


# --- ends ---

_OWN_STORAGE = re.compile(
    r"EmptyDir volume|ephemeral local storage usage exceeds|exceeded its local ephemeral storage limit", re.I
)
_START_REASONS = ("StartError", "ContainerCannotRun")


def _end(pod: Json, status: Json, state: Json, phase: str) -> PodEnd | None:
    reason, message = status.get("reason") or "", status.get("message") or ""
    terminated = state.get("terminated") or {}
    if reason == "Evicted" and _OWN_STORAGE.search(message):
        return PodEnd(EndReason.DISK, f"it used all its disk space (WORKSPACE_MAX_BYTES, SANDBOX_TMP_BYTES): {message}")
    if reason == "DeadlineExceeded":
        return PodEnd(EndReason.DEADLINE, f"it was stopped at its deadline: {message}")
    if terminated.get("reason") == "OOMKilled":
        return PodEnd(EndReason.MEMORY, "it used all its memory (SANDBOX_MEMORY_BYTES)", _code(terminated))
    if taken := _disrupted(status) or (reason if phase == "Failed" or reason == "NodeLost" else ""):
        words = f"{taken}: {message}" if message else taken
        return PodEnd(EndReason.EVICTED, f"the cluster took the sandbox away, the step can be tried again: {words}")
    if not terminated and phase not in ("Failed", "Succeeded"):
        return None
    if pod["metadata"].get("deletionTimestamp"):
        # Its exit code shows only that it was deleted; its Job may know why.
        return deleted(None)
    return _exited(terminated)


def _exited(terminated: Json) -> PodEnd:
    code = _code(terminated)
    words = str(terminated.get("message") or "").strip()[-500:]
    if terminated.get("reason") in _START_REASONS:
        return PodEnd(
            EndReason.REFUSED, f"its first process cannot start; SANDBOX_IMAGE must have sh and python3: {words}", code
        )
    message = f"the first process of the sandbox ended with code {code}"
    return PodEnd(EndReason.EXITED, f"{message}: {words}" if words else message, code)


def _disrupted(status: Json) -> str:
    """Why the cluster is about to end the pod, as newer releases report it, apart from what its own Job does."""
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason") or "DisruptionTarget")
    return ""


def _code(terminated: Json) -> int:
    return int(terminated.get("exitCode", KILLED))


# --- waits ---

_NOT_FOUND = re.compile(
    r"not found|does not exist|manifest unknown|denied|unauthorized|authorization failed|authentication required"
    r"|insufficient_scope|40[134]( |$)",
    re.I,
)
_BAD_IMAGES = ("InvalidImageName", "ErrImageNeverPull")
_BAD_CONTAINERS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def _waiting(status: Json, waiting: Json) -> Waiting:
    reason, message = waiting.get("reason") or "", waiting.get("message") or ""
    if reason in _BAD_IMAGES:
        words = f"the image cannot be used ({reason}): {message}"
        return Waiting(words, SandboxImageNotFound(f"{words}; {NO_SUCH_IMAGE}"), is_final=True)
    if reason in ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"):
        words = f"the image cannot be pulled: {message}"
        failure = SandboxImageNotFound(f"{words}; {NO_SUCH_IMAGE}")
        return Waiting(words, failure, is_final=_NOT_FOUND.search(message) is not None)
    if reason in _BAD_CONTAINERS:
        words = f"the container cannot start ({reason}): {message}"
        return Waiting(words, SandboxRefused(f"{words}; check SANDBOX_IMAGE and SANDBOX_RUNTIME_CLASS"), is_final=True)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            words = f"no node has a place for the sandbox: {condition.get('message') or condition.get('reason')}"
            return Waiting(words, SandboxUnschedulable(f"{words}; {NO_PLACE}"))
    words = "the container is being made, or its image pulled" if reason else "the pod waits for a node"
    if message:
        words = f"{words}: {message}"
    return Waiting(words, SandboxUnschedulable(f"not started in time: {words}; {NOT_IN_TIME}"))


def _container(status: Json) -> Json:
    for container in status.get("containerStatuses") or ():
        found: Json = container
        return found
    return {}
