"""Containers of one machine as the target of deployments, by Docker or Podman. The networks of access tiers are not
enforced here, and there is no autoscaler (docs/deployments.md)."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import structlog

from backplane.containers.engine import STOP_SECONDS, ContainerEngine, PresentContainer
from backplane.domain.deployments import LOG_LINE_CHARS, PORT, Deployment, PrintedLine
from backplane.errors import Unavailable
from backplane.process.tasks import end, for_each
from controller.deployments.containers.plan import (
    DEPLOYMENT_LABEL,
    PLATFORM_LABEL,
    ContainerHost,
    ReplicaContainer,
    changes_of,
    content_of,
    health_of,
    number_wanted,
    replica_words,
    rollout_of_containers,
    secret_file,
    url_of,
    urls_of,
)
from controller.deployments.target import DeployTarget, Removal, SeenDeployment, TargetRefused

PROBE_SECONDS = 2.0
PROBES_AT_ONCE = 20
FAILURES = 3
"""Probes in a row after which a replica that ran is restarted."""
LINE_BYTES = 4 * LOG_LINE_CHARS + 64
REMOVED_AT_ONCE = 20
"""Each may take its whole grace to end."""

log = structlog.get_logger()


class ContainerTarget(DeployTarget):
    def __init__(self, engine: ContainerEngine, host: ContainerHost) -> None:
        self._engine = engine
        self._host = host
        self._there: dict[str, list[ReplicaContainer]] = {}
        self._known = frozenset[str]()
        self._failures: dict[str, tuple[int, float]] = {}
        """By a container's id: probes in a row that failed, and when the last one was."""
        self._client: httpx.AsyncClient | None = None
        self._restarts: dict[str, asyncio.Task[None]] = {}
        """By a container's id: one that ignores signals takes long, and the others are looked at meanwhile."""

    async def look(self, deployments: Sequence[Deployment]) -> None:
        present = await self._engine.labelled(f"{PLATFORM_LABEL}={self._host.platform_id}")
        known = {one.id: one for one in deployments}
        found: dict[str, list[ReplicaContainer]] = {}

        async def look_at(one: PresentContainer) -> None:
            id = one.labels.get(DEPLOYMENT_LABEL, "")
            found.setdefault(id, []).append(await self._replica(one, known.get(id)))

        await for_each(present, look_at, parallel=PROBES_AT_ONCE)
        self._there, self._known = found, frozenset(known)
        ids = {one.id for one in present}
        self._failures = {id: value for id, value in self._failures.items() if id in ids}

    def seen(self, deployment: Deployment) -> SeenDeployment:
        there, wanted = self._there.get(deployment.id, []), number_wanted(deployment)
        if deployment.effective is None:
            return SeenDeployment(rollout_of_containers(deployment, 0, "", there, datetime.now(UTC)), True)
        try:
            content = self._content(deployment, self._secrets(deployment))
        except TargetRefused:
            # To apply it says why.
            content = ""
        rollout = rollout_of_containers(deployment, wanted, content, there, datetime.now(UTC))
        changes = changes_of(deployment.object_name, wanted, content, there)
        urls = urls_of(self._host, there)
        rollout = replace(rollout, urls=urls, url=urls[0] if urls else "")
        return SeenDeployment(rollout, changes.is_empty and (bool(content) or not wanted))

    async def apply(self, deployment: Deployment) -> None:
        secrets = self._secrets(deployment)
        content, wanted = self._content(deployment, secrets), number_wanted(deployment)
        there = self._there.get(deployment.id, [])
        changes = changes_of(deployment.object_name, wanted, content, there)
        await for_each(changes.remove, lambda one: self._engine.remove(one.id), parallel=REMOVED_AT_ONCE)
        try:
            for one in changes.begin:
                await self._engine.start(one.id)
            for name in changes.start:
                await self._engine.run(replica_words(name, content, deployment, self._host, secrets))
        except Unavailable as error:
            # The engine answers, or the look would not have ended: it is the image, or a name that is taken.
            raise TargetRefused(error.message) from None

    async def remove(self, removal: Removal) -> str:
        ours = await self._ours(removal.id)
        grace = removal.grace_seconds
        await for_each(ours, lambda one: self._engine.remove(one.id, grace), parallel=REMOVED_AT_ONCE)
        left = await self._ours(removal.id)
        return f"{len(left)} containers" if left else ""

    async def _ours(self, id: str) -> list[PresentContainer]:
        found = await self._engine.labelled(f"{DEPLOYMENT_LABEL}={id}")
        return [one for one in found if one.labels.get(PLATFORM_LABEL) == self._host.platform_id]

    def left(self) -> Sequence[Removal]:
        return [Removal(id, "", STOP_SECONDS) for id in self._there if id and id not in self._known]

    def replicas(self, deployment: Deployment) -> Sequence[str]:
        return [one.present.name for one in self._there.get(deployment.id, ()) if one.present.state != "created"]

    async def printed(
        self, deployment: Deployment, replica: str, since: datetime | None
    ) -> AsyncGenerator[PrintedLine, None]:
        at_first = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if since is not None else ""
        async with aclosing(self._engine.follow(replica, at_first, most=LINE_BYTES)) as lines:
            async for line in lines:
                at, _, text = line.decode("utf-8", "replace").partition(" ")
                # What has no time is the engine's own word.
                with suppress(ValueError):
                    yield PrintedLine(replica, text[: LOG_LINE_CHARS + 1], datetime.fromisoformat(at).astimezone(UTC))

    async def close(self) -> None:
        await end(*self._restarts.values())
        if self._client is not None:
            await self._client.aclose()

    async def _replica(self, one: PresentContainer, deployment: Deployment | None) -> ReplicaContainer:
        if deployment is None or deployment.effective is None:
            return ReplicaContainer(one)
        health = health_of(one) or deployment.effective.manifest.health
        if one.state != "running":
            words = await self._engine.last_lines(one.id)
            why = f"is {one.state}, exit code {one.exit_code}, restarted {one.restarts} times"
            return ReplicaContainer(one, words="; ".join(filter(None, (why, one.error, words))))
        fault = await self._probe(one, health.path)
        if not fault:
            self._failures.pop(one.id, None)
            return ReplicaContainer(one, is_ready=True)
        words = fault
        if one.restarts:
            words = f"{fault}, restarted {one.restarts} times; {await self._engine.last_lines(one.id)}"
        age = (datetime.now(UTC) - one.made_at).total_seconds() if one.made_at else 0.0
        if age > health.liveness_delay and self._is_dead(one, health.liveness_period):
            self._begin_restart(one.id)
        return ReplicaContainer(one, words=words)

    def _begin_restart(self, container_id: str) -> None:
        if container_id in self._restarts:
            return
        restart = asyncio.create_task(self._restart(container_id), name="restart a replica")
        self._restarts[container_id] = restart
        restart.add_done_callback(lambda _: self._restarts.pop(container_id))

    async def _restart(self, container_id: str) -> None:
        try:
            await self._engine.restart(container_id)
        except Unavailable as error:
            log.warning("a replica that does not answer was not restarted", container=container_id, error=error.message)

    def _is_dead(self, one: PresentContainer, period: float) -> bool:
        """Whether so many probes in a row have failed, a period apart."""
        failures, last = self._failures.get(one.id, (0, float("-inf")))
        now = time.monotonic()
        if now - last >= period:
            failures, last = failures + 1, now
        self._failures[one.id] = (failures, last)
        if failures < FAILURES:
            return False
        self._failures[one.id] = (0, now)
        return True

    async def _probe(self, one: PresentContainer, path: str) -> str:
        """Why it does not answer; empty: it does."""
        port = one.ports.get(PORT)
        if port is None:
            return "has no port"
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=PROBE_SECONDS, follow_redirects=False, trust_env=False)
        url = f"{url_of(self._host, port)}{path}"
        try:
            async with asyncio.timeout(PROBE_SECONDS), self._client.stream("GET", url) as it:
                return "" if 200 <= it.status_code < 400 else f"answers {it.status_code} at {path}"
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            return f"does not answer at {path} ({type(error).__name__})"

    def _content(self, deployment: Deployment, secrets: Sequence[str]) -> str:
        assert deployment.effective is not None
        return content_of(deployment.effective, self._host, secrets)

    def _secrets(self, deployment: Deployment) -> list[str]:
        """The content of those that it names. Raises TargetRefused when one is missing."""
        assert deployment.effective is not None
        return [self._secret(deployment.namespace, name) for name in deployment.effective.manifest.secrets]

    def _secret(self, namespace: str, name: str) -> str:
        file = secret_file(self._host, namespace, name)
        if file is None:
            raise TargetRefused(f"there is no secret {name}: the controller has no folder DEPLOY_ENV_DIR")
        try:
            return _text(file)
        except UnicodeDecodeError:
            raise TargetRefused(f"the secret {name} is not UTF-8 text: {namespace}/{name}.env") from None
        except OSError:
            raise TargetRefused(
                f"there is no secret {name}: no file {namespace}/{name}.env in DEPLOY_ENV_DIR"
            ) from None


def _text(file: Path) -> str:
    return file.read_text("utf-8")
