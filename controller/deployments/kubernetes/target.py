"""A cluster as the target of deployments: a few lists a pass, by the labels of this platform.

Secrets that manifests name are read for the digest of their content alone, which starts new pods when it changes; their
values are kept nowhere.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from backplane.domain.deployments import LOG_LINE_CHARS, Deployment, PrintedLine
from backplane.kubernetes.api import ApiRefused, ApiServer, open_api_server
from backplane.process.tasks import for_each
from controller.deployments.kubernetes.objects import (
    CONTAINER,
    DEPLOYMENT,
    DEPLOYMENT_LABEL,
    GRACE_SECONDS,
    INSTANCE_LABEL,
    NETWORK_POLICY,
    POD,
    SERVICE,
    SERVICE_ACCOUNT,
    ClusterRules,
    Declared,
    ObjectKind,
    ServerKinds,
    account_name,
    declared_objects,
    secrets_digest_of,
)
from controller.deployments.kubernetes.reading import (
    LiveObjects,
    is_as_declared,
    rollout_of,
)
from controller.deployments.kubernetes.writing import PAGE, ObjectWriter
from controller.deployments.target import DeployTarget, Removal, SeenDeployment

SECRETS_SECONDS = 15.0
"""How old the known content of a Secret may be."""
LISTS_AT_ONCE, SECRETS_AT_ONCE = 4, 10
LEFT_SECONDS = 600.0
"""How often a cluster is looked through, where there are no deployments, for what is left of one."""
KINDS_SECONDS = 600.0
"""How often the server is asked for the versions that it knows: it may be upgraded meanwhile."""
LINE_BYTES = 4 * LOG_LINE_CHARS + 64
"""A line with its time; a character has at most 4 bytes."""

Json = dict[str, Any]

log = structlog.get_logger()


class KubernetesTarget(DeployTarget):
    """`kubeconfig`: a file with credentials; empty: those of the pod, or of the environment."""

    def __init__(self, rules: ClusterRules, kubeconfig: str = "") -> None:
        self._rules = rules
        self._kubeconfig = kubeconfig
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._api: ApiServer | None = None
        self._kinds: ServerKinds | None = None
        self._kinds_at = float("-inf")
        self._looked_at = float("-inf")
        self._live: dict[str, LiveObjects] = {}
        self._left: list[Removal] = []
        self._declarations: dict[str, tuple[tuple[int, str, ServerKinds], Declared]] = {}
        """By a deployment's id, and of what it was made: to make it takes long, and most passes find it unchanged."""
        self._accounts: dict[tuple[str, str], Json] = {}
        self._secrets: dict[tuple[str, str], tuple[float, str]] = {}

    async def look(self, deployments: Sequence[Deployment]) -> None:
        if not deployments and time.monotonic() - self._looked_at < LEFT_SECONDS:
            self._live, self._accounts, self._left = {}, {}, []
            return
        self._looked_at = time.monotonic()
        api, kinds = await self._server(), await self._server_kinds()
        namespaced = (DEPLOYMENT, SERVICE, NETWORK_POLICY, kinds.budget, kinds.autoscaler)
        found: dict[ObjectKind, list[Json]] = {}

        async def list_kind(kind: ObjectKind) -> None:
            found[kind] = await self._list(api, kind)

        await for_each((*namespaced, SERVICE_ACCOUNT, POD), list_kind, parallel=LISTS_AT_ONCE)
        await self._read_secrets(api, deployments)
        self._accounts = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one for one in found[SERVICE_ACCOUNT]
        }
        objects: dict[str, dict[tuple[str, str], Json]] = {}
        for kind in namespaced:
            for one in found[kind]:
                objects.setdefault(_deployment_id(one), {})[kind.name, one["metadata"]["name"]] = one
        pods: dict[str, list[Json]] = {}
        for pod in found[POD]:
            pods.setdefault(_deployment_id(pod), []).append(pod)
        self._live = {id: LiveObjects(objects.get(id, {}), pods.get(id, ())) for id in {*objects, *pods} if id}
        known = {one.id for one in deployments}
        self._declarations = {id: made for id, made in self._declarations.items() if id in known}
        self._left = [
            Removal(id, one["metadata"]["namespace"], GRACE_SECONDS)
            for id, live in self._live.items()
            if id not in known
            for one in [*live.objects.values(), *live.pods][:1]
        ]

    def left(self) -> Sequence[Removal]:
        return self._left

    def seen(self, deployment: Deployment) -> SeenDeployment:
        live, declared = self._live_of(deployment), self._declared(deployment)
        rollout = rollout_of(declared, live, datetime.now(UTC))
        url = deployment.service_url
        urls = (url,) if rollout.ready_replicas else ()
        return SeenDeployment(replace(rollout, urls=urls, url=url), is_as_declared(declared, live))

    async def apply(self, deployment: Deployment) -> None:
        writer = ObjectWriter(await self._server(), self._rules, await self._server_kinds())
        await writer.write(deployment, self._declared(deployment), self._live_of(deployment))

    async def remove(self, removal: Removal) -> str:
        writer = ObjectWriter(await self._server(), self._rules, await self._server_kinds())
        return await writer.remove(removal)

    def replicas(self, deployment: Deployment) -> Sequence[str]:
        return [pod["metadata"]["name"] for pod in self._live_of(deployment).pods if _has_begun(pod)]

    async def printed(
        self, deployment: Deployment, replica: str, since: datetime | None
    ) -> AsyncGenerator[PrintedLine, None]:
        api = await self._server()
        path = f"{POD.path(deployment.namespace, replica)}/log"
        query = [("container", CONTAINER), ("follow", "true"), ("timestamps", "true")]
        if since is not None:
            query.append(("sinceTime", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        try:
            async with contextlib.aclosing(api.lines(path, query, most=LINE_BYTES)) as lines:
                async for line in lines:
                    if (printed := _printed(replica, line)) is not None:
                        yield printed
        except ApiRefused as refused:
            # 400: its container has not begun; 404: it is gone.
            if refused.status not in (400, 404):
                raise refused.unavailable(f"get pods/log in {deployment.namespace}") from None

    async def close(self) -> None:
        await self._stack.aclose()

    async def _server(self) -> ApiServer:
        async with self._opening:
            if self._api is None:
                self._api = await self._stack.enter_async_context(open_api_server(self._kubeconfig))
            return self._api

    async def _server_kinds(self) -> ServerKinds:
        if self._kinds is None or time.monotonic() - self._kinds_at >= KINDS_SECONDS:
            try:
                answer = await (await self._server()).call("GET", "/apis")
            except ApiRefused as refused:
                raise refused.unavailable("list its API groups") from None
            self._kinds = server_kinds({v["groupVersion"] for group in answer["groups"] for v in group["versions"]})
            self._kinds_at = time.monotonic()
        return self._kinds

    async def _list(self, api: ApiServer, kind: ObjectKind) -> list[Json]:
        query = [("labelSelector", f"{INSTANCE_LABEL}={self._rules.platform_id}")]
        try:
            return [one async for one in api.pages(kind.path(), query, page=PAGE)]
        except ApiRefused as refused:
            raise refused.unavailable(f"list {kind.plural} (k8s/components/deployments)") from None

    async def _read_secrets(self, api: ApiServer, deployments: Sequence[Deployment]) -> None:
        wanted = {
            (one.namespace, name)
            for one in deployments
            if one.deleted_at is None and one.effective is not None
            for name in one.effective.manifest.secrets
        }
        self._secrets = {key: value for key, value in self._secrets.items() if key in wanted}
        now = time.monotonic()
        due = [key for key in wanted if key not in self._secrets or now - self._secrets[key][0] >= SECRETS_SECONDS]

        async def read(key: tuple[str, str]) -> None:
            self._secrets[key] = (now, await self._secret_digest(api, *key))

        await for_each(due, read, parallel=SECRETS_AT_ONCE)

    async def _secret_digest(self, api: ApiServer, namespace: str, name: str) -> str:
        try:
            found = await api.call("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        except ApiRefused as refused:
            if refused.status == 404:
                return secrets_digest_of([(name, None)])
            raise refused.unavailable("get secrets (k8s/components/deployments)") from None
        return secrets_digest_of([(name, found.get("data") or {})])

    def _live_of(self, deployment: Deployment) -> LiveObjects:
        live = self._live.get(deployment.id, LiveObjects())
        objects = dict(live.objects)
        if deployment.effective is not None:
            account = account_name(deployment.effective.manifest.access_tier)
            if (found := self._accounts.get((deployment.namespace, account))) is not None:
                objects[SERVICE_ACCOUNT.name, account] = found
        return LiveObjects(objects, live.pods)

    def _declared(self, deployment: Deployment) -> Declared:
        assert self._kinds is not None
        names = deployment.effective.manifest.secrets if deployment.effective else ()
        known = [(name, {"": self._secrets.get((deployment.namespace, name), (0.0, ""))[1]}) for name in names]
        made_of = (deployment.version, secrets_digest_of(known), self._kinds)
        before = self._declarations.get(deployment.id)
        if before is not None and before[0] == made_of:
            return before[1]
        declared = declared_objects(deployment, self._rules, self._kinds, made_of[1])
        self._declarations[deployment.id] = made_of, declared
        return declared


def server_kinds(versions: set[str]) -> ServerKinds:
    """`versions`: of the groups that the server has, as policy/v1."""
    budget = "policy/v1" if "policy/v1" in versions else "policy/v1beta1"
    autoscaler = next(
        (version for version in ("autoscaling/v2", "autoscaling/v2beta2") if version in versions), "autoscaling/v1"
    )
    return ServerKinds(
        ObjectKind("PodDisruptionBudget", budget, "poddisruptionbudgets"),
        ObjectKind("HorizontalPodAutoscaler", autoscaler, "horizontalpodautoscalers"),
    )


def _deployment_id(one: Json) -> str:
    return str(one["metadata"].get("labels", {}).get(DEPLOYMENT_LABEL, ""))


def _has_begun(pod: Json) -> bool:
    return any(
        "running" in one["state"] or "terminated" in one["state"] or one["restartCount"]
        for one in pod.get("status", {}).get("containerStatuses", ())
    )


def _printed(replica: str, line: bytes) -> PrintedLine | None:
    at, _, text = line.decode("utf-8", "replace").partition(" ")
    try:
        return PrintedLine(replica, text[: LOG_LINE_CHARS + 1], datetime.fromisoformat(at).astimezone(UTC))
    except ValueError:
        # The kubelet's own word, when a log cannot be read.
        return None
