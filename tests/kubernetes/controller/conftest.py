"""A cluster, a namespace of the test's own in it, and the parts of a platform that a controller asks."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from backplane.domain.runs import Run
from backplane.domain.sandbox_labels import GENERATION, PART, POOL, RUN, SANDBOX, WORKER, label_value
from backplane.domain.users import Tier, User
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.queue.base import Queue
from backplane.redis.client import RedisClients
from backplane.resources import connect_store
from backplane.settings import Settings
from backplane.store import Store
from tests.queues import redis_queue
from tests.submitted import new_run
from tests.waiting import wait_until


@pytest.fixture
async def api(kubeconfig: str) -> AsyncIterator[ApiServer]:
    """As a controller asks the API server."""
    async with open_api_server() as made:
        yield made


@pytest.fixture
async def namespace(api: ApiServer) -> AsyncIterator[str]:
    """One of the test's own, ready for pods, and deleted with all that is in it."""
    name = f"t-controller-{uuid4().hex[:8]}"
    await api.call("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})

    async def has_account() -> bool:
        try:
            await api.call("GET", f"/api/v1/namespaces/{name}/serviceaccounts/default")
        except ApiRefused:
            return False
        return True

    await wait_until(has_account)
    yield name
    await api.call("DELETE", f"/api/v1/namespaces/{name}")


@dataclass(frozen=True)
class Cluster:
    """Jobs and pods in one namespace."""

    api: ApiServer
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
        await self.api.call("POST", self._jobs_path, body=body)
        return name

    async def job_of(self, run: Run, generation: int, worker: str = "worker-1") -> str:
        labels = {RUN: run.id, GENERATION: str(generation), WORKER: label_value(worker)}
        return await self.make_job(f"step-{uuid4().hex[:8]}", **labels)

    async def warm_job(self, worker: str) -> str:
        return await self.make_job(f"warm-{uuid4().hex[:8]}", **{POOL: "warm", WORKER: label_value(worker)})

    async def relabel(self, job: str, **labels: str) -> None:
        await self.api.call("PATCH", f"{self._jobs_path}/{job}", body={"metadata": {"labels": labels}})

    async def jobs(self) -> set[str]:
        """The names of those that are there and not being deleted."""
        listed = await self.api.call("GET", self._jobs_path)
        found = [job["metadata"] for job in listed["items"]]
        return {metadata["name"] for metadata in found if "deletionTimestamp" not in metadata}

    async def running_jobs(self) -> int:
        """How many have a pod that runs, and know it."""
        jobs = (await self.api.call("GET", self._jobs_path))["items"]
        pods = (await self.api.call("GET", self.pods_path))["items"]
        active = sum(job["status"].get("active", 0) for job in jobs)
        return int(min(active, sum(pod["status"]["phase"] == "Running" for pod in pods)))

    async def pods(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in (await self.api.call("GET", self.pods_path))["items"]}

    async def make_pod(self, name: str, **labels: str) -> str:
        pod = {"terminationGracePeriodSeconds": 0, "containers": [self._for_ever]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": pod}
        await self.api.call("POST", self.pods_path, body=body)
        return name

    async def annotate(self, pod: str, name: str, value: str) -> None:
        await self.api.call("PATCH", f"{self.pods_path}/{pod}", body={"metadata": {"annotations": {name: value}}})

    async def annotation(self, pod: str, name: str) -> str | None:
        found = await self.api.call("GET", f"{self.pods_path}/{pod}")
        value: str | None = found["metadata"].get("annotations", {}).get(name)
        return value

    @property
    def pods_path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    @property
    def _jobs_path(self) -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/jobs"

    @property
    def _for_ever(self) -> dict[str, Any]:
        return {"name": "main", "image": self.image, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "3600"]}


@pytest.fixture
def kubernetes(api: ApiServer, namespace: str, sandbox_image: str) -> Cluster:
    return Cluster(api, namespace, sandbox_image)


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
