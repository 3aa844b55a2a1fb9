"""Tells Kubernetes which worker pods to take first when it scales down: those with the fewest runs in hand.

A pod's deletion cost is an annotation that the ReplicaSet's controller reads when it has pods too many (since
Kubernetes 1.22). It is a wish, not a promise: a worker that is taken all the same drains. Only costs that
changed are written.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from backplane.errors import PlatformError
from backplane.queue.base import LiveWorker, Queue
from controller.cluster import Cluster, connect_cluster

ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

log = structlog.get_logger()


def costs(workers: Iterable[LiveWorker], pods: Mapping[str, str | None]) -> dict[str, str]:
    """The costs to be written: for each pod (name → its cost as it stands, if any) whose cost is another by now."""
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
                async with connect_cluster() as cluster:
                    while True:
                        await self.update(cluster)
                        await asyncio.sleep(self._period_seconds)
            except PlatformError as error:
                log.warning("the deletion costs of worker pods are not told", error=error.message)
                await asyncio.sleep(self._period_seconds)

    async def update(self, cluster: Cluster) -> None:
        """One pass. Raises PlatformError when the cluster or the queue does not answer."""
        found = [pod["metadata"] for pod in await cluster.pods(self._namespace, self._selector)]
        pods = {pod["name"]: _cost(pod) for pod in found if "deletionTimestamp" not in pod}
        if not pods:
            return
        for name, cost in costs(await self._queue.workers(), pods).items():
            await cluster.annotate_pod(self._namespace, name, {ANNOTATION: cost})


def _cost(metadata: Mapping[str, Any]) -> str | None:
    cost: str | None = metadata.get("annotations", {}).get(ANNOTATION)
    return cost
