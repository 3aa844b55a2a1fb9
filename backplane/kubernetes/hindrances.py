"""What keeps pods from running, read from what the cluster's scheduler, its nodes and its controllers write about
them, in their own words."""

from collections.abc import Iterator, Mapping
from typing import Any

WORDS_MAX_CHARS = 300
_ON_ITS_WAY = ("ContainerCreating", "PodInitializing")


def hindrances(pod: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a pod from running, as far as waiting alone does not help."""
    name, status = pod["metadata"]["name"], pod["status"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            yield _words(f"pod {name} has no node", condition.get("message", ""))
    for container in status.get("containerStatuses", ()):
        waiting = container["state"].get("waiting", {})
        if waiting and waiting.get("reason") not in _ON_ITS_WAY:
            yield _words(f"pod {name}: {waiting.get('reason', 'it waits')}", waiting.get("message", ""))
        elif container["restartCount"] and not container["ready"]:
            last = container.get("lastState", {}).get("terminated", {})
            code = f"exit code {last['exitCode']}; its log says why" if "exitCode" in last else ""
            yield _words(f"pod {name} was restarted {container['restartCount']} times", code)


def refusal(deployment: Mapping[str, Any]) -> str:
    """Why the cluster makes no pods of a Deployment: a quota, Pod Security, an account that is missing; empty: it
    does."""
    conditions = deployment.get("status", {}).get("conditions", ())
    failures = [one for one in conditions if one["type"] == "ReplicaFailure" and one["status"] == "True"]
    return _words(*(one.get("message", "") for one in failures[:1]))


def _words(*parts: str) -> str:
    return ": ".join(part for part in parts if part)[:WORDS_MAX_CHARS]
