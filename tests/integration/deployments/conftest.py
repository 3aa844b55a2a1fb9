"""A controller of deployments beside a cluster that a test may let fail, and which knows its ClusterRole."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from backplane.domain.agent_manifest import AgentManifest
from backplane.domain.deployments import Deployment, NewDeployment
from backplane.domain.users import Tier, User
from backplane.errors import NotFound
from backplane.kubernetes import api
from backplane.leases.redis import RedisLease
from backplane.process.tasks import end
from backplane.redis.client import RedisClients
from backplane.resources import connect_store
from backplane.settings import Settings, fixed
from backplane.store import Store
from controller.deployments import collecting
from controller.deployments import loop as deployments_loop
from controller.deployments.kubernetes import reading, target
from controller.deployments.kubernetes.objects import ClusterRules
from controller.deployments.kubernetes.target import KubernetesTarget
from controller.deployments.loop import DeploymentsLoop
from controller.deployments.metrics import DeploymentMetrics
from controller.leader import Leader
from tests.cluster_server import ClusterServer, Json, cluster_server
from tests.deployed_agents import agent_manifest
from tests.integration.controller.test_cluster import CONFIG
from tests.waiting import wait_until

ACCESS = Path(__file__).parents[3] / "k8s/components/deployments/access.yaml"
SOME_SECONDS = 20.0
NAMESPACE = "ada-agents"


@dataclass
class Beside:
    """A platform with one user, and its cluster."""

    cluster: ClusterServer
    store: Store
    user: User
    rules: ClusterRules
    config: str
    redis: RedisClients

    @asynccontextmanager
    async def controller(self, *, alone: bool = True) -> AsyncIterator[DeploymentsLoop]:
        """`alone` False: it works though another one does."""
        name = uuid.uuid4().hex
        leader = Leader(RedisLease(self.redis, self.redis.keys.deployments, name, seconds=60.0))
        if not alone:
            leader.leads = _always  # type: ignore[method-assign]
        target = KubernetesTarget(self.rules, self.config)
        loop = DeploymentsLoop(self.store.deployments, target, leader, DeploymentMetrics(CollectorRegistry()))
        running = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            await end(running)

    async def deploy(self, manifest: AgentManifest | None = None, agent_id: str = "greeter") -> Deployment:
        new = NewDeployment(agent_id, NAMESPACE, "image:1", manifest or agent_manifest())
        return (await self.store.deployments.create(self.user, new, most=100))[0]

    async def until(self, deployment: Deployment, is_so: Callable[[Deployment], Any]) -> Deployment:
        last: list[Deployment] = []

        async def check() -> bool:
            last[:] = [await self.store.deployments.get(None, deployment.id)]
            return bool(is_so(last[0]))

        try:
            await wait_until(check, SOME_SECONDS)
        except AssertionError:
            raise AssertionError(f"{last[0].status}: {last[0].reason}: {last[0].rollout}") from None
        return last[0]

    async def until_gone(self, deployment: Deployment) -> None:
        async def is_gone() -> bool:
            try:
                await self.store.deployments.get(None, deployment.id)
            except NotFound:
                return True
            return False

        await wait_until(is_gone, SOME_SECONDS)

    def kinds(self) -> dict[str, int]:
        """How many objects the cluster has, by kind; what belongs to a namespace and not to a deployment apart."""
        found: dict[str, int] = {}
        for _, plural, _, _ in self.cluster.objects:
            if plural not in ("namespaces", "serviceaccounts"):
                found[plural] = found.get(plural, 0) + 1
        return found


async def _always() -> bool:
    return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "DEPLOYMENTS_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(fixed, "DEPLOYMENTS_REST_SECONDS", 0.05)
    monkeypatch.setattr(target, "LEFT_SECONDS", 0.0)
    monkeypatch.setattr(collecting, "KEPT_SECONDS", 0.2)
    monkeypatch.setattr(reading, "HOPELESS_AFTER", timedelta(0))
    monkeypatch.setattr(deployments_loop, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(api, "pauses", lambda: iter([0.01] * 100))
    monkeypatch.setattr(deployments_loop, "pauses", lambda: iter([0.05] * 1000))


@pytest.fixture
async def beside(sqlite_database: str, redis: str, tmp_path: Path) -> AsyncIterator[Beside]:
    role: Json = next(yaml.safe_load_all(await asyncio.to_thread(ACCESS.read_text)))
    clients = RedisClients(redis)
    settings = Settings.model_validate({"database_url": sqlite_database})
    async with cluster_server(role["rules"]) as cluster, connect_store(settings) as store:
        await store.migrate()
        config = tmp_path / "config"
        await asyncio.to_thread(config.write_text, CONFIG.format(url=cluster.url))
        token, _ = await store.users.create_token("ada", Tier.ADMIN)
        rules = ClusterRules(await store.platform_id(), "agents")
        yield Beside(cluster, store, token.user, rules, str(config), clients)
    await clients.close()
