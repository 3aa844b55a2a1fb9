"""A controller of deployments beside a real cluster, with the rights that the manifests give it and no others."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from backplane.domain.agent_manifest import AgentManifest
from backplane.domain.deployments import Deployment, DeploymentEventType, NewDeployment
from backplane.domain.users import Tier, User
from backplane.errors import NotFound
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.leases.redis import RedisLease
from backplane.process.tasks import end
from backplane.redis.client import RedisClients
from backplane.resources import connect_store
from backplane.settings import Settings, fixed
from backplane.store import Store
from controller.deployments.kubernetes import reading, target
from controller.deployments.kubernetes.objects import ClusterRules
from controller.deployments.kubernetes.target import KubernetesTarget
from controller.deployments.loop import DeploymentsLoop
from controller.deployments.metrics import DeploymentMetrics
from controller.leader import Leader
from tests.deployed_agents import SERVE, agent_manifest
from tests.waiting import wait_until

ACCESS = Path(__file__).parents[3] / "k8s/components/deployments/access.yaml"
IMAGE = "docker.io/library/python:3.12-slim"
SOME_SECONDS = 90.0
KINDS = (
    *("apis/apps/v1 deployments", "apis/apps/v1 replicasets", "api/v1 pods", "api/v1 services"),
    *("apis/networking.k8s.io/v1 networkpolicies", "apis/autoscaling/v1 horizontalpodautoscalers"),
)

Json = dict[str, Any]
Condition = Callable[[Deployment], Any]


def serving(**deployment: Any) -> AgentManifest:
    return agent_manifest(command=["python", "-c", SERVE], **deployment)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "DEPLOYMENTS_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(fixed, "DEPLOYMENTS_REST_SECONDS", 0.3)
    monkeypatch.setattr(target, "SECRETS_SECONDS", 1.0)
    monkeypatch.setattr(reading, "HOPELESS_AFTER", timedelta(seconds=4))
    monkeypatch.setattr(reading, "RESTARTS", 1)


@pytest.fixture
async def api(kubeconfig: str) -> AsyncIterator[ApiServer]:
    """As the cluster's administrator."""
    async with open_api_server(kubeconfig) as made:
        yield made


@pytest.fixture
async def rights(api: ApiServer, kubeconfig: str, tmp_path: Path) -> AsyncIterator[str]:
    """A kubeconfig with the rights of the component's ClusterRole."""
    role, binding = yaml.safe_load_all(await asyncio.to_thread(ACCESS.read_text))
    name = f"t-deployments-{uuid.uuid4().hex[:8]}"
    root = "/apis/rbac.authorization.k8s.io/v1"
    await api.call("POST", f"{root}/clusterroles", body={**role, "metadata": {"name": name}})
    subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    bound = {**binding, "metadata": {"name": name}, "subjects": [subject]}
    bound["roleRef"] = {**binding["roleRef"], "name": name}
    await api.call("POST", f"{root}/clusterrolebindings", body=bound)
    config: Json = yaml.safe_load(await asyncio.to_thread(Path(kubeconfig).read_text))
    for entry in config["users"]:
        entry["user"]["as"] = f"system:serviceaccount:default:{name}"
    file = tmp_path / "kubeconfig"
    await asyncio.to_thread(file.write_text, yaml.safe_dump(config))
    yield str(file)
    await api.call("DELETE", f"{root}/clusterrolebindings/{name}")
    await api.call("DELETE", f"{root}/clusterroles/{name}")


@dataclass
class Deploying:
    """A platform with one user, and the namespace of this test."""

    api: ApiServer
    store: Store
    user: User
    rules: ClusterRules
    rights: str
    redis: RedisClients
    namespace: str

    def target(self) -> KubernetesTarget:
        return KubernetesTarget(self.rules, self.rights)

    @asynccontextmanager
    async def controller(self, lease_seconds: float = 60.0) -> AsyncIterator[DeploymentsLoop]:
        lease = RedisLease(self.redis, self.redis.keys.deployments, uuid.uuid4().hex, seconds=lease_seconds)
        loop = DeploymentsLoop(
            self.store.deployments, self.target(), Leader(lease), DeploymentMetrics(CollectorRegistry())
        )
        running = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            await end(running)

    async def deploy(self, manifest: AgentManifest | None = None, image: str = IMAGE) -> Deployment:
        new = NewDeployment(f"agent-{uuid.uuid4().hex[:6]}", self.namespace, image, manifest or serving())
        made, _ = await self.store.deployments.create(self.user, new, most=10)
        return made

    async def get(self, deployment: Deployment) -> Deployment:
        return await self.store.deployments.get(None, deployment.id)

    async def until(self, deployment: Deployment, is_so: Condition, seconds: float = SOME_SECONDS) -> Deployment:
        last: list[Deployment] = []

        async def check() -> bool:
            last[:] = [await self.get(deployment)]
            return bool(is_so(last[0]))

        try:
            await wait_until(check, seconds)
        except AssertionError:
            raise AssertionError(f"after {seconds} s: {last[0].status}: {last[0].reason}: {last[0].rollout}") from None
        return last[0]

    async def until_ready(self, deployment: Deployment, replicas: int) -> Deployment:
        """Until the rollout is complete with so many."""
        return await self.until(deployment, lambda it: it.rollout.is_complete and it.rollout.ready_replicas == replicas)

    async def until_gone(self, deployment: Deployment, seconds: float = SOME_SECONDS) -> None:
        async def is_gone() -> bool:
            try:
                await self.get(deployment)
            except NotFound:
                return True
            return False

        await wait_until(is_gone, seconds)

    async def events(self, deployment: Deployment) -> list[DeploymentEventType]:
        """The oldest first."""
        return [one.type for one in reversed(await self.store.deployments.events(deployment.id, None, 100))]

    async def objects(self, deployment: Deployment) -> list[str]:
        """All that the cluster has of it: `plural/name`."""
        found = []
        query = [("labelSelector", f"agent-platform/deployment={deployment.id}")]
        for kind in KINDS:
            root, plural = kind.split()
            listed = await self.api.call("GET", f"/{root}/{plural}", query)
            found += [f"{plural}/{one['metadata']['name']}" for one in listed["items"]]
        return found

    def path(self, plural: str, deployment: Deployment, root: str = "/apis/apps/v1") -> str:
        return f"{root}/namespaces/{self.namespace}/{plural}/{deployment.object_name}"

    async def make_secret(self, name: str, **values: str) -> None:
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
        await self.api.apply(f"/api/v1/namespaces/{self.namespace}/secrets/{name}", body, manager="test")


@pytest.fixture
async def deploying(api: ApiServer, rights: str, sqlite_database: str, redis: str) -> AsyncIterator[Deploying]:
    clients = RedisClients(redis)
    namespace = f"t-deploy-{uuid.uuid4().hex[:8]}"
    async with connect_store(Settings.model_validate({"database_url": sqlite_database})) as store:
        await store.migrate()
        token, _ = await store.users.create_token("ada", Tier.ADMIN)
        rules = ClusterRules(await store.platform_id(), "agents")
        yield Deploying(api, store, token.user, rules, rights, clients, namespace)
    await clients.close()
    with suppress(ApiRefused):
        await api.call("DELETE", f"/api/v1/namespaces/{namespace}")
