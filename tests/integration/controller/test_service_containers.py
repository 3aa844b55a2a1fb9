"""Containers of services by a real engine: started as declared, replaced, removed; what is not ours is not touched."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backplane.containers import engine
from backplane.domain.services import ContainerSpec, ContainerState, HealthCheck, Service, ServiceSpec, ServiceStatus
from backplane.errors import NotFound
from backplane.settings import fixed
from controller.services import containers as module
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.podman_images import podman
from tests.ports import own_port
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SERVE = ("/bin/sh", "-c", "mkdir -p /www && echo $WORD > /www/index.html && exec httpd -f -p 80 -h /www")
QUICK = HealthCheck(kind="http", interval_seconds=0.1, timeout_seconds=0.1, failures=2, successes=1)  # type: ignore[arg-type]
TIMEOUT = 60.0


@pytest.fixture
async def hosting(start_platform: StartPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setattr(fixed, "SERVICE_POLL_SECONDS", 0.05)
    monkeypatch.setattr(fixed, "SERVICE_CONTAINER_SECONDS", 0.1)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(engine, "STOP_SECONDS", 1)
    (tmp_path / "env").mkdir()
    return await start_platform(services_container_engine="podman", services_env_dir=str(tmp_path / "env"))


@pytest.fixture(autouse=True)
async def nothing_left(hosting: Platform) -> Iterator[None]:  # type: ignore[misc]
    yield
    for id in await of_platform(hosting):
        podman("rm", "--force", "--volumes", "--time", "0", id)


async def of_platform(platform: Platform) -> list[str]:
    label = f"label=agent-platform.platform={await platform.store.platform_id()}"
    return podman("ps", "--all", "--quiet", "--no-trunc", "--filter", label).split()


async def made(platform: Platform, image: str, **container: object) -> Service:
    spec = ContainerSpec(image=image, **{"command": SERVE, "port": 80, "environment": {"WORD": "one"}, **container})  # type: ignore[arg-type]
    name = f"t-{uuid.uuid4().hex[:8]}"
    declared = ServiceSpec(port=own_port(), check=QUICK, container=spec)
    return await platform.store.services.create(platform.user.id, name, declared, most=100)


async def state_is(platform: Platform, service: Service, state: ContainerState) -> bool:
    return (await platform.store.services.get(service.id)).container is state


async def status_is(platform: Platform, service: Service, status: ServiceStatus) -> bool:
    return (await platform.store.services.get(service.id)).health.status is status


async def is_gone(platform: Platform, service: Service) -> bool:
    try:
        await platform.store.services.get(service.id)
    except NotFound:
        return True
    return False


async def test_a_service_is_started_answers_is_changed_and_leaves_nothing_when_it_is_deleted(
    hosting: Platform, controllers: Controllers, image: str, tmp_path: Path
) -> None:
    service = await made(hosting, image)
    (tmp_path / "env" / f"{service.name}.env").write_text("SECRET=of the host\n")
    controllers.start(hosting.settings)
    await wait_until(lambda: status_is(hosting, service, ServiceStatus.UP), TIMEOUT)
    [first] = await of_platform(hosting)
    [inspected] = json.loads(podman("container", "inspect", first))
    assert inspected["Name"] == f"agent-service-{service.name}"
    assert "SECRET=of the host" in inspected["Config"]["Env"]
    assert inspected["HostConfig"]["Memory"] == 1 << 30

    service = await hosting.store.services.get(service.id)
    assert service.spec.container is not None
    changed = replace(service.spec, container=replace(service.spec.container, environment={"WORD": "two"}))
    service = await hosting.store.services.change(service, changed)

    async def is_another_one() -> bool:
        return len(found := await of_platform(hosting)) == 1 and found != [first]

    await wait_until(is_another_one, TIMEOUT)
    await wait_until(lambda: state_is(hosting, service, ContainerState.RUNNING), TIMEOUT)
    assert not await hosting.store.services.delete(await hosting.store.services.get(service.id))
    await wait_until(lambda: is_gone(hosting, service), TIMEOUT)
    assert await of_platform(hosting) == []


async def test_a_container_that_somebody_stopped_is_started_again(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    service = await made(hosting, image)
    controllers.start(hosting.settings)
    await wait_until(lambda: status_is(hosting, service, ServiceStatus.UP), TIMEOUT)
    [id] = await of_platform(hosting)
    podman("stop", "--time", "0", id)
    await wait_until(lambda: status_is(hosting, service, ServiceStatus.DOWN), TIMEOUT)
    await wait_until(lambda: status_is(hosting, service, ServiceStatus.UP), TIMEOUT)
    assert await of_platform(hosting) == [id]


async def test_an_image_that_is_not_to_be_had_is_named_in_the_engines_words(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    service = await made(hosting, "localhost/there-is-no-such-image:1")
    controllers.start(hosting.settings)
    await wait_until(lambda: state_is(hosting, service, ContainerState.FAILED), TIMEOUT)
    assert "there-is-no-such-image" in (await hosting.store.services.get(service.id)).container_reason
    assert not await hosting.store.services.delete(service)
    await wait_until(lambda: is_gone(hosting, service), TIMEOUT)


async def test_a_container_of_somebody_else_with_the_name_is_not_touched(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    service = await made(hosting, image)
    name = f"agent-service-{service.name}"
    theirs = podman("run", "--detach", "--name", name, image, "/bin/sleep", "600").strip()
    try:
        controllers.start(hosting.settings)
        await wait_until(lambda: state_is(hosting, service, ContainerState.FAILED), TIMEOUT)
        assert name in (await hosting.store.services.get(service.id)).container_reason
        assert not await hosting.store.services.delete(service)
        await wait_until(lambda: is_gone(hosting, service), TIMEOUT)
        assert podman("container", "inspect", "--format", "{{.State.Status}}", theirs).strip() == "running"
    finally:
        podman("rm", "--force", "--time", "0", theirs)


async def test_a_controller_that_is_killed_after_the_start_leaves_one_container_that_the_next_keeps(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    service = await made(hosting, image)
    first = controllers.start(hosting.settings)
    await wait_until(lambda: _has_one(hosting), TIMEOUT)
    controllers.stop(first)
    async with asyncio.timeout(TIMEOUT):
        await first
    before = await of_platform(hosting)
    # As if it had been killed before it could write what it had done.
    await hosting.store.services.write_container(service, ContainerState.WAITING)
    for _ in range(2):
        controllers.start(hosting.settings)
    await wait_until(lambda: state_is(hosting, service, ContainerState.RUNNING), TIMEOUT)
    assert await of_platform(hosting) == before


async def _has_one(platform: Platform) -> bool:
    return len(await of_platform(platform)) == 1


async def test_a_container_whose_service_is_gone_by_force_is_removed(
    hosting: Platform, controllers: Controllers, image: str
) -> None:
    service = await made(hosting, image)
    controllers.start(hosting.settings)
    await wait_until(lambda: state_is(hosting, service, ContainerState.RUNNING), TIMEOUT)
    assert await hosting.store.services.delete(service, force=True)

    async def none_is_left() -> bool:
        return await of_platform(hosting) == []

    await wait_until(none_is_left, TIMEOUT)
