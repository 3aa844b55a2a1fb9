"""Deployments as containers of one machine, by a real engine: rolled out, scaled, failed, taken back, and deleted."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backplane.containers import engine
from backplane.domain.agent_manifest import AgentManifest, parse_manifest
from backplane.domain.deployments import Deployment, DeploymentStatus, NewDeployment
from backplane.errors import NotFound
from backplane.settings import fixed
from controller.deployments.containers import plan
from tests.deployed_agents import agent_manifest
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.podman_images import podman
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SERVE = "echo serving as $WORD; exec httpd -f -p $PORT -h /"
TIMEOUT = 60.0
RUNNING, FAILED = DeploymentStatus.RUNNING, DeploymentStatus.FAILED


def serving(word: str = "one", **deployment: Any) -> AgentManifest:
    values = {"command": ["/bin/sh", "-c", SERVE], "environment": {"WORD": word}, **deployment}
    return agent_manifest(health="/bin/busybox", **values)


@pytest.fixture
async def hosting(
    start_platform: StartPlatform, redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Platform]:
    monkeypatch.setattr(fixed, "DEPLOYMENTS_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(fixed, "DEPLOYMENTS_REST_SECONDS", 0.2)
    monkeypatch.setattr(engine, "STOP_SECONDS", 1)
    monkeypatch.setattr(plan, "HOPELESS_AFTER", timedelta(seconds=1))
    platform = await start_platform(
        redis_url=redis, deploy_target="container", deploy_container_engine="podman", deploy_env_dir=str(tmp_path)
    )
    yield platform
    for one in containers(await platform.store.platform_id()):
        podman("rm", "--force", "--volumes", "--time", "0", one)


def containers(platform_id: str) -> list[str]:
    label = f"label={plan.PLATFORM_LABEL}={platform_id}"
    return podman("ps", "--all", "--quiet", "--no-trunc", "--filter", label).split()


async def deploy(platform: Platform, image: str, manifest: AgentManifest) -> Deployment:
    new = NewDeployment("greeter", "ada-agents", image, manifest)
    return (await platform.store.deployments.create(platform.user, new, most=10))[0]


async def until(platform: Platform, made: Deployment, is_so: Any) -> Deployment:
    async def check() -> Deployment | None:
        found = await platform.store.deployments.get(None, made.id)
        last[:] = [found]
        return found if is_so(found) else None

    last: list[Deployment] = []
    try:
        await wait_until(check, TIMEOUT)
    except AssertionError:
        raise AssertionError(f"{last[0].status}: {last[0].reason}: {last[0].rollout}") from None
    return last[0]


async def test_an_agent_is_rolled_out_scaled_changed_and_leaves_nothing(
    hosting: Platform, controllers: Controllers, image: str, tmp_path: Path
) -> None:
    (tmp_path / "ada-agents").mkdir()
    (tmp_path / "ada-agents/keys.env").write_text("KEY=of the host\n")
    made = await deploy(hosting, image, serving(secrets=["keys"]))
    controllers.start(hosting.settings)
    store, platform_id = hosting.store.deployments, await hosting.store.platform_id()
    await until(hosting, made, lambda it: it.status is RUNNING)
    await store.scale(made.id, 2, hosting.user)
    await until(hosting, made, lambda it: it.rollout.is_complete and it.rollout.ready_replicas == 2)
    for one in json.loads(podman("container", "inspect", *containers(platform_id))):
        assert "KEY=of the host" in one["Config"]["Env"]
        assert one["Config"]["User"] == "10001:10001"
        assert one["HostConfig"]["Memory"] == 64 << 20
    before = containers(platform_id)
    await store.revise(made.id, hosting.user, manifest=serving("two", secrets=["keys"]))
    await until(hosting, made, lambda it: it.current.number == 2 and it.status is RUNNING)
    after = containers(platform_id)
    assert len(after) == 2
    assert not set(before) & set(after)

    async def printed() -> bool:
        lines = [line.text for line in (await store.logs_after(made.id, 0, 100)).lines]
        return (lines.count("serving as one"), lines.count("serving as two")) == (2, 2)

    await wait_until(printed, TIMEOUT)
    await store.delete(made.id, hosting.user, 1)

    async def is_gone() -> bool:
        try:
            await store.get(None, made.id)
        except NotFound:
            return True
        return False

    await wait_until(is_gone, TIMEOUT)
    assert containers(platform_id) == []


async def test_one_that_ends_at_once_fails_with_its_last_words_and_is_taken_back(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    made = await deploy(hosting, image, serving(auto_rollback=True))
    controllers.start(hosting.settings)
    await until(hosting, made, lambda it: it.status is RUNNING)
    ends = serving(auto_rollback=True, command=["/bin/sh", "-c", "echo the key is missing; exit 3"])
    await hosting.store.deployments.revise(made.id, hosting.user, manifest=ends)
    found = await until(hosting, made, lambda it: it.current.number == 3 and it.status is RUNNING)
    assert found.current.manifest == made.current.manifest
    [failed] = await hosting.store.deployments.revisions(made.id, 3, 1)
    assert "the key is missing" in failed.outcome_reason


async def test_an_image_that_is_not_there_fails_with_the_engines_words(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    made = await deploy(hosting, "localhost/no-such-agent:1", serving())
    controllers.start(hosting.settings)
    found = await until(hosting, made, lambda it: it.status is FAILED)
    assert "no-such-agent" in found.reason


async def test_a_secret_that_is_missing_is_named(hosting: Platform, controllers: Controllers, image: str) -> None:
    made = await deploy(hosting, image, serving(secrets=["keys"]))
    controllers.start(hosting.settings)
    found = await until(hosting, made, lambda it: it.status is FAILED)
    assert "ada-agents/keys.env" in found.reason


async def test_a_replica_that_answers_no_more_and_ignores_signals_is_restarted(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    script = "trap '' TERM; echo serving; touch /dev/shm/ok; (sleep 3; rm /dev/shm/ok) & exec httpd -f -p $PORT -h /"
    given = dict(agent_manifest(health="/dev/shm/ok", command=["/bin/sh", "-c", script]).source)
    given["spec"]["monitoring"]["health_check"] |= {"liveness_delay_seconds": 1, "liveness_period_seconds": 1}
    made = await deploy(hosting, image, parse_manifest(given))
    controllers.start(hosting.settings)
    await until(hosting, made, lambda it: it.status is RUNNING)

    async def serves_again() -> bool:
        lines = (await hosting.store.deployments.logs_after(made.id, 0, 100)).lines
        return [line.text for line in lines].count("serving") >= 2

    await wait_until(serves_again, TIMEOUT)
