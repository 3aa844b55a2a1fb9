"""A cluster, a namespace of the test's own in it, and the parts of a platform that a controller asks."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from kubernetes.aio.client import BatchV1Api, CoreV1Api

from backplane.domain.runs import Run
from backplane.domain.sandbox_labels import GENERATION, PART, POOL, RUN, SANDBOX, WORKER, label_value
from backplane.domain.users import Tier, User
from backplane.queue.base import Queue
from backplane.redis.client import RedisClients
from backplane.resources import connect_store
from backplane.settings import Settings
from backplane.store import Store
from controller.cluster import Cluster as ControllersCluster
from controller.cluster import connect_cluster
from tests.queues import redis_queue
from tests.submitted import new_run
from tests.waiting import wait_until


@pytest.fixture
async def cluster(kubeconfig: str) -> AsyncIterator[ControllersCluster]:
    async with connect_cluster() as made:
        yield made


@pytest.fixture
async def namespace(cluster: ControllersCluster) -> AsyncIterator[str]:
    """One of the test's own, ready for pods, and deleted with all that is in it."""
    api: Any = CoreV1Api(cluster.client)
    name = f"t-controller-{uuid4().hex[:8]}"
    await api.create_namespace({"metadata": {"name": name}})

    async def has_account() -> bool:
        return bool((await api.list_namespaced_service_account(name)).items)

    await wait_until(has_account)
    yield name
    await api.delete_namespace(name)


@dataclass(frozen=True)
class Cluster:
    """Jobs and pods in one namespace. `own` is how a controller sees the cluster."""

    own: ControllersCluster
    namespace: str
    image: str

    async def make_job(self, name: str, **labels: str) -> str:
        """A sandbox's Job that goes on for ever; answers its name."""
        labels = {PART: SANDBOX} | labels
        pod = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [self._for_ever],
        }
        body = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
        }
        await self._batch.create_namespaced_job(self.namespace, body)
        return name

    async def job_of(self, run: Run, generation: int, worker: str = "worker-1") -> str:
        labels = {RUN: run.id, GENERATION: str(generation), WORKER: label_value(worker)}
        return await self.make_job(f"step-{uuid4().hex[:8]}", **labels)

    async def warm_job(self, worker: str) -> str:
        return await self.make_job(f"warm-{uuid4().hex[:8]}", **{POOL: "warm", WORKER: label_value(worker)})

    async def relabel(self, job: str, **labels: str) -> None:
        await self._batch.patch_namespaced_job(job, self.namespace, {"metadata": {"labels": labels}})

    async def jobs(self) -> set[str]:
        """The names of those that are there and not being deleted."""
        listed = await self._batch.list_namespaced_job(self.namespace)
        return {job.metadata.name for job in listed.items if job.metadata.deletion_timestamp is None}

    async def running_jobs(self) -> int:
        """How many have a pod that runs, and know it."""
        active = sum(job.status.active or 0 for job in (await self._batch.list_namespaced_job(self.namespace)).items)
        pods = (await self._core.list_namespaced_pod(self.namespace)).items
        return int(min(active, sum(pod.status.phase == "Running" for pod in pods)))

    async def pods(self) -> set[str]:
        listed = await self._core.list_namespaced_pod(self.namespace)
        return {pod.metadata.name for pod in listed.items}

    async def make_pod(self, name: str, **labels: str) -> str:
        pod = {"terminationGracePeriodSeconds": 0, "containers": [self._for_ever]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": pod}
        await self._core.create_namespaced_pod(self.namespace, body)
        return name

    async def annotate(self, pod: str, name: str, value: str) -> None:
        await self._core.patch_namespaced_pod(pod, self.namespace, {"metadata": {"annotations": {name: value}}})

    async def annotation(self, pod: str, name: str) -> str | None:
        found = await self._core.read_namespaced_pod(pod, self.namespace)
        value: str | None = (found.metadata.annotations or {}).get(name)
        return value

    @property
    def _for_ever(self) -> dict[str, Any]:
        return {"name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}

    @property
    def _batch(self) -> Any:
        return BatchV1Api(self.own.client)

    @property
    def _core(self) -> Any:
        return CoreV1Api(self.own.client)


@pytest.fixture
def kubernetes(cluster: ControllersCluster, namespace: str, sandbox_image: str) -> Cluster:
    return Cluster(cluster, namespace, sandbox_image)


@dataclass(frozen=True)
class Platform:
    """What a controller asks about runs and workers."""

    store: Store
    queue: Queue
    user: User

    async def running_run(self, generation: int = 1) -> Run:
        run = await self.store.runs.create(new_run(self.user), start=True)
        assert await self.store.running_runs.take(run.id, generation)
        return run


@pytest.fixture
async def platform(sqlite_database: str, redis: str) -> AsyncIterator[Platform]:
    clients = RedisClients(redis)
    async with connect_store(Settings.model_validate({"database_url": sqlite_database})) as store:
        await store.migrate()
        token, _ = await store.users.create_token("ada", Tier.STANDARD)
        yield Platform(store, redis_queue(clients, lease_seconds=600), token.user)
    await clients.close()
