"""The deletion cost of worker pods on a real cluster. What a scale-down makes of it is Kubernetes' (from 1.22 on)."""

from backplane.domain.runs import Priority
from backplane.queue.base import Job
from controller.deletion_cost import ANNOTATION, DeletionCosts
from tests.kubernetes.controller.conftest import Cluster, Platform


async def test_pods_bear_the_number_of_running_runs_as_their_cost(kubernetes: Cluster, platform: Platform) -> None:
    busy = await kubernetes.make_pod("agent-worker-5d8-busy", app="agent-worker")
    idle = await kubernetes.make_pod("agent-worker-5d8-idle", app="agent-worker")
    api = await kubernetes.make_pod("agent-api-5d8", app="agent-api")
    await platform.queue.enqueue([Job(f"run-{number}", "ada", Priority.NORMAL) for number in range(2)])
    claims = await platform.queue.claim(f"{busy}-1-abc123", 2)
    for pod, held in ((busy, claims), (idle, [])):
        await platform.queue.renew(f"{pod}-1-abc123", 10, held)
    costs = DeletionCosts(platform.queue, kubernetes.namespace, "app=agent-worker", period_seconds=1)
    await costs.update(kubernetes.api)
    assert await kubernetes.annotation(busy, ANNOTATION) == "2"
    assert await kubernetes.annotation(idle, ANNOTATION) in (None, "0")
    assert await kubernetes.annotation(api, ANNOTATION) is None
    await platform.queue.deregister(f"{busy}-1-abc123")
    await costs.update(kubernetes.api)
    assert await kubernetes.annotation(busy, ANNOTATION) == "0"
