"""Lets Kubernetes, when it scales down, remove first the worker pods that carry out the fewest runs.

A pod's deletion cost is an annotation that the ReplicaSet's controller reads when it has too many pods (since
Kubernetes 1.22). The cluster may ignore it: a worker that is removed all the same drains. Only costs that changed are
written.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from backplane.errors import PlatformError
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.queue.base import LiveWorker, Queue

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

log = structlog.get_logger()


def costs(workers: Iterable[LiveWorker], pods: Mapping[str, str | None]) -> dict[str, str]:
    """The costs of the pods whose cost has changed. `pods`: name → the cost that the pod has now, if any."""
    running = Counter[str]()
    for worker in workers:
        # A worker's id is its host's name, which is that of its pod, a process id and some random digits.
        running[worker.id.rsplit("-", 2)[0]] += worker.running
    return {pod: str(running[pod]) for pod, cost in pods.items() if (cost or "0") != str(running[pod])}


class DeletionCosts:
    """For the pods in `namespace` that `selector` selects, by their labels. The period is in seconds."""

    def __init__(self, queue: Queue, namespace: str, selector: str, *, period_seconds: float) -> None:
        self._queue = queue
        self._namespace = namespace
        self._selector = selector
        self._period_seconds = period_seconds

    async def run(self) -> None:
        while True:
            try:
                async with open_api_server() as api:
                    while True:
                        await self.update(api)
                        await asyncio.sleep(self._period_seconds)
            except PlatformError as error:
                log.warning("the deletion costs of worker pods are not written", error=error.message)
                await asyncio.sleep(self._period_seconds)

    async def update(self, api: ApiServer) -> None:
        """One pass. Raises PlatformError when the cluster or the queue does not answer."""
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        try:
            listed = await api.call("GET", path, [("labelSelector", self._selector)])
        except ApiRefused as refused:
            raise refused.unavailable(f"list pods in {self._namespace}") from None
        found = [pod["metadata"] for pod in listed["items"]]
        pods = {pod["name"]: _cost(pod) for pod in found if "deletionTimestamp" not in pod}
        if not pods:
            return
        for name, cost in costs(await self._queue.workers(), pods).items():
            await write_cost(api, self._namespace, name, cost)


async def write_cost(api: ApiServer, namespace: str, pod: str, cost: str) -> None:
    """Raises Unavailable; a pod that is gone is fine. The request goes to the pod's status, because the right to that
    does not include its specification: who may patch pods themselves may give them another image."""
    try:
        await api.call(
            "PATCH",
            f"/api/v1/namespaces/{namespace}/pods/{pod}/status",
            body={"metadata": {"annotations": {ANNOTATION: cost}}},
        )
    except ApiRefused as refused:
        if refused.status != 404:
            raise refused.unavailable(f"patch pods/status in {namespace}") from None


def _cost(metadata: Mapping[str, Any]) -> str | None:
    cost: str | None = metadata.get("annotations", {}).get(ANNOTATION)
    return cost
