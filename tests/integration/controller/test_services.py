"""Controllers look after services: real ports, the history, the owner's events, and the signed webhook."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from backplane.domain.bus import EventFilter
from backplane.domain.services import HealthCheck, ServiceSpec, ServiceStatus
from backplane.settings import fixed
from tests.integration.controller.conftest import Controllers, Platform
from tests.integration.controller.receiving import Receiver
from tests.ports import own_port
from tests.waiting import wait_until

QUICK = HealthCheck(interval_seconds=0.02, timeout_seconds=5, failures=2, successes=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "SERVICE_POLL_SECONDS", 0.02)


class Switch:
    """A server that is there or not."""

    def __init__(self) -> None:
        self.port = own_port()
        self._server: asyncio.Server | None = None

    async def on(self) -> None:
        self._server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", self.port)

    async def off(self) -> None:
        if self._server is not None:
            self._server.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._server.wait_closed()


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    made = Switch()
    yield made
    await made.off()


async def made(platform: Platform, port: int, name: str = "redis", webhook_url: str | None = None) -> str:
    spec = ServiceSpec(port=port, check=QUICK, webhook_url=webhook_url)
    return (await platform.store.services.create(platform.user.id, name, spec, most=100)).id


async def status_is(platform: Platform, id: str, status: ServiceStatus) -> bool:
    return (await platform.store.services.get(id)).health.status is status


async def types(platform: Platform) -> list[str]:
    return [event.type for event in (await platform.store.bus.page(platform.user.id, 0, 100, EventFilter())).events]


async def test_a_service_that_goes_down_and_up_is_reported_once_each_however_many_controllers_look(
    platform: Platform, controllers: Controllers, receiver: Receiver, switch: Switch
) -> None:
    id = await made(platform, switch.port, webhook_url=receiver.url())
    for _ in range(2):
        controllers.start(platform.settings)
    await wait_until(lambda: status_is(platform, id, ServiceStatus.DOWN))
    await switch.on()
    await wait_until(lambda: status_is(platform, id, ServiceStatus.UP))
    await wait_until(lambda: len(receiver.received) == 2)
    assert await types(platform) == ["service.down", "service.up"]
    assert sorted(each.json["event"] for each in receiver.received) == ["service.down", "service.up"]
    secret = (await platform.store.webhooks.secret(platform.user.id)).secret
    assert all(each.is_signed_with(secret) for each in receiver.received)
    history = await platform.store.services.history(id, None, 10)
    assert [(change.status.value, change.reason) for change in history] == [
        ("up", ""),
        ("down", "nothing listens on the port"),
    ]


async def test_services_that_never_answer_hold_up_no_other_one(
    platform: Platform, controllers: Controllers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    slow = HealthCheck(kind="http", interval_seconds=60, timeout_seconds=30, failures=1)  # type: ignore[arg-type]
    for number in range(20):
        spec = ServiceSpec(port=port, check=slow)
        await platform.store.services.create(platform.user.id, f"silent-{number}", spec, most=100)
    id = await made(platform, port)
    controller = controllers.start(platform.settings)
    await wait_until(lambda: status_is(platform, id, ServiceStatus.UP))
    controllers.stop(controller)
    async with asyncio.timeout(10):
        await controller
    server.close()


async def test_a_service_that_was_deleted_is_not_checked_any_more(
    platform: Platform, controllers: Controllers, switch: Switch
) -> None:
    await switch.on()
    id = await made(platform, switch.port)
    controllers.start(platform.settings)
    await wait_until(lambda: status_is(platform, id, ServiceStatus.UP))
    await platform.store.services.delete(await platform.store.services.get(id))
    other = await made(platform, switch.port, "other")
    await wait_until(lambda: status_is(platform, other, ServiceStatus.UP))
    assert [service.name for service in await platform.store.services.list_all()] == ["other"]
