"""What a controller counts, seen by scraping it."""

from collections.abc import AsyncIterator
from functools import partial

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from agentctl.local.embedded import free_port
from backplane.resources import connect
from backplane.settings import fixed
from controller.metrics import ControllerMetrics
from tests.integration.controller.conftest import Controllers, Platform, StartPlatform
from tests.integration.controller.receiving import Receiver, answer
from tests.metrics import Scraped, broken_conventions, parsed, scrape
from tests.waiting import wait_until

STORED = {"agent_workspace_stored_bytes", "agent_workspace_stored_files", "agent_workspace_measured_timestamp_seconds"}


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def until(platform: Platform, name: str, value: float, **labels: str) -> Scraped:
    """The metrics, once this one has come to its value."""

    async def look() -> Scraped | None:
        try:
            found = await scrape(f"http://127.0.0.1:{platform.settings.metrics_port}")
        except httpx.TransportError:
            return None
        return found if name in found.names and found.value(name, **labels) == value else None

    found = await wait_until(look, what=f"{name} {labels} is {value}")
    assert found
    return found


async def test_webhooks_are_counted_by_what_came_of_them(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers
) -> None:
    platform = await start_platform(metrics_port=free_port(), webhook_max_attempts=2)
    receiver.answers += [answer(500), answer(500)]
    await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    found = await until(platform, "agent_webhooks_total", 1, status="given_up")
    assert found.value("agent_webhooks_total", status="failed") == 1
    assert found.value("agent_webhooks_total", status="delivered") == 0
    await platform.ended_run(receiver.url())
    await until(platform, "agent_webhooks_total", 1, status="delivered")


async def test_what_is_stored_is_measured_again_and_again(
    start_platform: StartPlatform, controllers: Controllers
) -> None:
    platform = await start_platform(metrics_port=free_port(), metrics_storage_seconds=0.05)
    workspace = platform.workspaces.workspace(platform.user.id, "run-1")
    await workspace.write("a", chunks(b"x" * 10))
    controllers.start(platform.settings)
    found = await until(platform, "agent_workspace_stored_bytes", 10)
    assert found.value("agent_workspace_stored_files") == 1
    assert found.value("agent_workspace_measured_timestamp_seconds") > 1e9
    assert broken_conventions(found.families) == []
    await workspace.write("b", chunks(b"x" * 10))
    await until(platform, "agent_workspace_stored_bytes", 20)


async def test_what_each_user_has_stored_is_counted_again_and_again(
    start_platform: StartPlatform,
    receiver: Receiver,
    controllers: Controllers,
    redis: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixed, "USAGE_SECONDS", 0.05)
    platform = await start_platform(metrics_storage_seconds=0.05, redis_url=redis)
    workspace = platform.workspaces.workspace(platform.user.id, "run-1")
    await workspace.write("a", chunks(b"x" * 10))
    await platform.ended_run(receiver.url())
    controllers.start(platform.settings)

    async def counted(*, size: int) -> bool:
        async with connect(platform.settings) as resources:
            stored = await resources.storage.of(platform.user.id)
        return (stored.runs, stored.bytes) == (1, size) and (stored.events or 0) > 0

    await wait_until(partial(counted, size=10))
    await workspace.delete("a")
    await wait_until(partial(counted, size=0))


async def test_without_a_period_nothing_is_measured_and_no_metric_is_shown(
    start_platform: StartPlatform, receiver: Receiver, controllers: Controllers
) -> None:
    platform = await start_platform(metrics_port=free_port(), metrics_storage_seconds=0)
    await platform.ended_run(receiver.url())
    controllers.start(platform.settings)
    found = await until(platform, "agent_webhooks_total", 1, status="delivered")
    assert not STORED & found.names


def test_what_was_collected_is_counted() -> None:
    registry = CollectorRegistry()
    metrics = ControllerMetrics(registry)
    metrics.jobs_collected(2)
    metrics.jobs_collected(1)
    metrics.sessions_removed("folder", 4)
    found = parsed(generate_latest(registry).decode())
    assert found.value("agent_sandbox_jobs_collected_total") == 3
    assert found.value("agent_sessions_removed_total", kind="folder") == 4
