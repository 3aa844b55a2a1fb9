"""Processes of pools as pods: each pool has a Deployment, found by its label, and its number of replicas is set here.

The cluster starts and ends the pods. Which one goes when there are fewer replicas it decides by the pods' deletion
costs: those that are to end cost less than nothing. A pod that goes all the same drains, and its agents are placed
elsewhere.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import structlog

from backplane.domain.agents import Pool, PoolProcess
from backplane.errors import Unavailable
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.kubernetes.hindrances import hindrances, refusal
from controller.deletion_cost import write_cost
from controller.pools.launcher import Launcher

LABEL = "agent-platform/pool"
CHEAPEST = "-1"
"""The cost of a pod that is to end; one without an annotation costs 0."""
LOOK_SECONDS = 5.0
"""How old the known numbers of replicas may be: operators and autoscalers may change them too."""

log = structlog.get_logger()


class DeploymentLauncher(Launcher):
    """In this namespace."""

    drains_first = False

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._replicas: dict[str, tuple[str, int]] = {}
        self._refusals: dict[str, str] = {}
        self._looked_at = float("-inf")
        self._failure: str | None = None
        self._stack = AsyncExitStack()
        self._api: ApiServer | None = None
        self._opening = asyncio.Lock()

    async def coming(self, pool: str, entered: Sequence[PoolProcess]) -> int:
        await self._look()
        _, replicas = self._replicas.get(pool, ("", 0))
        return max(replicas - len(entered), 0)

    async def start(self, pool: Pool, count: int, wanted: int) -> None:
        await self._scale(pool.name, wanted)

    async def end(self, pool: Pool, processes: Sequence[PoolProcess], wanted: int) -> None:
        api = await self._server()
        for one in processes:
            # A pod's name is its host's.
            await write_cost(api, self._namespace, one.node, CHEAPEST)
        await self._scale(pool.name, wanted)

    async def hindrance(self, pool: str) -> str | None:
        if words := self._refusals.get(pool):
            return words
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        try:
            listed = await (await self._server()).call("GET", path, [("labelSelector", f"{LABEL}={pool}")])
        except ApiRefused as refused:
            raise refused.unavailable(f"list pods in {self._namespace}") from None
        pods = [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]
        return next((found for pod in pods for found in hindrances(pod)), None)

    async def close(self) -> None:
        await self._stack.aclose()

    async def _server(self) -> ApiServer:
        async with self._opening:
            if self._api is None:
                self._api = await self._stack.enter_async_context(open_api_server())
            return self._api

    async def _look(self) -> None:
        """A failure is reported for each pool and kept as long as a number of replicas: the pools are looked after one
        after another, and each try may take its time."""
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._list()
                self._failure = None
            except Unavailable as error:
                self._failure = error.message
            except TimeoutError:
                self._failure = f"the Kubernetes API server lists no Deployments within {LOOK_SECONDS:.0f} s"
            self._looked_at = time.monotonic()
        if self._failure:
            raise Unavailable(self._failure, part="kubernetes")

    async def _list(self) -> None:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments"
        try:
            listed = await (await self._server()).call("GET", path, [("labelSelector", LABEL)])
        except ApiRefused as refused:
            raise refused.unavailable(f"list deployments in {self._namespace}") from None
        self._replicas = {
            made["metadata"]["labels"][LABEL]: (made["metadata"]["name"], made["spec"].get("replicas", 1))
            for made in listed["items"]
        }
        self._refusals = {
            made["metadata"]["labels"][LABEL]: f"the cluster makes no pod of {made['metadata']['name']}: {words}"
            for made in listed["items"]
            if (words := refusal(made))
        }

    async def _scale(self, pool: str, replicas: int) -> None:
        name, before = self._replicas.get(pool, ("", 0))
        if not name:
            message = f"no Deployment in {self._namespace} has the label {LABEL}={pool}; make one (k8s/README.md)"
            raise Unavailable(message, part="kubernetes")
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{name}/scale"
        try:
            await (await self._server()).call("PATCH", path, body={"spec": {"replicas": replicas}})
        except ApiRefused as refused:
            raise refused.unavailable(f"patch deployments/scale in {self._namespace}") from None
        self._replicas[pool] = (name, replicas)
        log.info("the replicas of a pool are set", pool=pool, deployment=name, replicas=replicas, before=before)
