"""How a rollout goes, read from what a cluster has: a function of its objects alone.

A rollout is complete when the cluster's controller has seen what was declared, all replicas are of it and available,
and none of an older one is left. It has failed when the cluster's own deadline is over, or when none of its pods is
available and one cannot start for a while: an image that cannot be pulled will not come, and nobody should wait ten
minutes to read so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from backplane.domain.deployments import REASON_CHARS, Rollout
from backplane.kubernetes.hindrances import hindrances, refusal
from controller.deployments.kubernetes.drift import LINES_MAX, drift_of
from controller.deployments.kubernetes.objects import CONTENT, DECLARED, REVISION, Declared, ObjectKind

Json = dict[str, Any]

HOPELESS_AFTER = timedelta(seconds=30)
"""A pull that failed once may be a registry's hiccup; the node has tried a few times by then."""
RESTARTS = 3
LAST_WORDS_CHARS = 400
_HOPELESS = frozenset(
    {
        *("ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    }
)
_CRASHING = "CrashLoopBackOff"


@dataclass(frozen=True, slots=True)
class LiveObjects:
    """What a cluster has of one deployment."""

    objects: Mapping[tuple[str, str], Json] = field(default_factory=dict)
    """By kind and name."""
    pods: Sequence[Json] = ()

    def of(self, kind: ObjectKind, name: str) -> Json | None:
        return self.objects.get((kind.name, name))

    @property
    def deployment(self) -> Json | None:
        return next((one for (kind, _), one in self.objects.items() if kind == "Deployment"), None)

    @property
    def present_pods(self) -> list[Json]:
        """Those that are not ending."""
        return [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]


def is_as_declared(declared: Declared, live: LiveObjects) -> bool:
    """Whether all of this was written, and is there. What somebody has changed since is drift."""
    made = live.deployment
    if made is None or not declared.objects or _annotations(made).get(DECLARED) != declared.digest:
        return False
    wanted = {(kind.name, one["metadata"]["name"]) for kind, one in declared.objects}
    return wanted <= live.objects.keys() and not surplus(declared, live)


def surplus(declared: Declared, live: LiveObjects) -> list[tuple[str, str]]:
    """ObjectKind and name of what was declared once and is not any more: an autoscaler, a disruption budget."""
    wanted = {(kind.name, one["metadata"]["name"]) for kind, one in declared.objects}
    return [key for key in live.objects if key not in wanted and key[0] != "ServiceAccount"]


def rollout_of(declared: Declared, live: LiveObjects, now: datetime) -> Rollout:
    made = live.deployment
    if made is None:
        return Rollout(seen_at=now, reason="the cluster has no Deployment of it yet")
    spec, status = made["spec"], made.get("status", {})
    wanted = spec.get("replicas", 1)
    is_seen = status.get("observedGeneration", 0) >= made["metadata"].get("generation", 0)
    counts = [status.get(f"{name}eplicas", 0) for name in ("r", "updatedR", "availableR", "readyR")]
    replicas, updated, available, ready = counts
    is_complete = is_seen and updated == wanted and replicas == updated and available == wanted
    content = _annotations(spec["template"]).get(CONTENT)
    new = [pod for pod in live.present_pods if _annotations(pod).get(CONTENT) == content]
    reasons = [] if is_complete else list(_reasons(made, [*new, *live.present_pods]))
    is_over = any(
        one["type"] == "Progressing" and one["status"] == "False" for one in status.get("conditions", ())
    ) or (not any(map(_is_ready, new)) and (_is_refused_for_long(made, now) or any(_is_hopeless(p, now) for p in new)))
    drifted: tuple[str, ...] = ()
    if _annotations(made).get(DECLARED) == declared.digest:
        drifted = tuple(_drift(declared, live))[:LINES_MAX]
    return Rollout(
        revision=int(_annotations(made).get(REVISION, 0)),
        replicas=wanted,
        ready_replicas=ready,
        updated_replicas=updated,
        is_complete=is_complete,
        has_failed=is_seen and is_over and not is_complete,
        reason="; ".join(dict.fromkeys(reasons))[:REASON_CHARS],
        drift=drifted,
        seen_at=now,
    )


def _reasons(made: Json, pods: Sequence[Json]) -> Iterator[str]:
    if refused := refusal(made):
        yield f"the cluster makes no pod: {refused}"
    for pod in pods:
        for words in hindrances(_with_status(pod)):
            printed = _last_words(pod)
            yield f"{words}; it printed: {printed}" if printed and "has no node" not in words else words
    for condition in made.get("status", {}).get("conditions", ()):
        if condition["type"] == "Progressing" and condition["status"] == "False":
            yield str(condition.get("message", condition.get("reason", "")))


def _drift(declared: Declared, live: LiveObjects) -> Iterator[str]:
    for kind, one in declared.objects:
        if (found := live.of(kind, one["metadata"]["name"])) is not None:
            yield from drift_of(one, found)


def _is_hopeless(pod: Json, now: datetime) -> bool:
    if now - datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) < HOPELESS_AFTER:
        return False
    for container in pod.get("status", {}).get("containerStatuses", ()):
        why = container["state"].get("waiting", {}).get("reason")
        if why in _HOPELESS or (why == _CRASHING and container["restartCount"] >= RESTARTS):
            return True
    return False


def _is_refused_for_long(made: Json, now: datetime) -> bool:
    return any(
        one["type"] == "ReplicaFailure"
        and one["status"] == "True"
        and now - datetime.fromisoformat(one["lastTransitionTime"]) >= HOPELESS_AFTER
        for one in made.get("status", {}).get("conditions", ())
    )


def _is_ready(pod: Json) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod.get("status", {}).get("conditions", ())
    )


def _last_words(pod: Json) -> str:
    """What its container printed before it ended: the node puts it into the status, for the agents' containers have
    the policy FallbackToLogsOnError."""
    for container in pod.get("status", {}).get("containerStatuses", ()):
        for state in (container["state"], container.get("lastState", {})):
            if message := state.get("terminated", {}).get("message"):
                lines = (line.strip() for line in str(message).splitlines())
                return " | ".join(filter(None, lines))[-LAST_WORDS_CHARS:]
    return ""


def _with_status(pod: Json) -> Json:
    return pod if "status" in pod else {**pod, "status": {}}


def _annotations(one: Json) -> Mapping[str, str]:
    return one["metadata"].get("annotations") or {}
