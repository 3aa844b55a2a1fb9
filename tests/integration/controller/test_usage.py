"""Counting what users have stored: one controller at a time."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from backplane.domain.stored import StorageQuota
from backplane.leases.redis import RedisLease
from backplane.limits.storage.redis import RedisStorage
from backplane.redis.client import RedisClients
from backplane.workspace.base import WorkspaceUsage
from backplane.workspace.local import LocalWorkspaceStore
from controller.metrics import ControllerMetrics
from controller.usage import FileCounting, pause_seconds
from tests.integration.worker.conftest import clients
from tests.waiting import wait_until

__all__ = ["clients"]

STORED = "agent_workspace_stored_bytes 100.0"


class SlowWorkspaces(LocalWorkspaceStore):
    """Counts how often it is measured; a measure ends when `go` is set."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.measures = 0
        self.go = asyncio.Event()

    async def usage_by_user(self) -> dict[str, WorkspaceUsage]:
        self.measures += 1
        await self.go.wait()
        return {"ada": WorkspaceUsage(files=1, bytes=100)}


class Controller:
    def __init__(self, clients: RedisClients, workspaces: SlowWorkspaces, owner: str) -> None:
        self.registry = CollectorRegistry()
        self.lease = RedisLease(clients, clients.keys.counting("files"), owner, seconds=60)
        self.counting = FileCounting(
            self.lease, 3600, workspaces, RedisStorage(clients), ControllerMetrics(self.registry)
        )

    @property
    def published(self) -> str:
        return generate_latest(self.registry).decode()


@pytest.fixture
def workspaces(tmp_path: Path) -> SlowWorkspaces:
    return SlowWorkspaces(tmp_path)


async def begun(controller: Controller, workspaces: SlowWorkspaces) -> "asyncio.Task[float]":
    measures = workspaces.measures
    turn = asyncio.create_task(controller.counting.take_turn())
    await wait_until(lambda: workspaces.measures > measures)
    return turn


async def test_of_two_controllers_that_count_at_once_one_counts(
    clients: RedisClients, workspaces: SlowWorkspaces
) -> None:
    one, other = Controller(clients, workspaces, "one"), Controller(clients, workspaces, "other")
    turn = await begun(one, workspaces)
    assert await other.counting.take_turn() > 0
    workspaces.go.set()
    await turn
    await other.counting.take_turn()
    assert workspaces.measures == 1
    assert (await RedisStorage(clients).of("ada")).bytes == 100


async def test_when_the_one_that_counts_ends_another_counts_at_once(
    clients: RedisClients, workspaces: SlowWorkspaces
) -> None:
    one, other = Controller(clients, workspaces, "one"), Controller(clients, workspaces, "other")
    workspaces.go.set()
    await one.counting.take_turn()
    await one.lease.give_up()
    await other.counting.take_turn()
    assert workspaces.measures == 2
    assert (await RedisStorage(clients).of("ada")).bytes == 100


async def test_who_lost_the_lease_while_it_counted_changes_nothing(
    clients: RedisClients, workspaces: SlowWorkspaces
) -> None:
    one, other = Controller(clients, workspaces, "one"), Controller(clients, workspaces, "other")
    turn = await begun(one, workspaces)
    await one.lease.give_up()
    assert await other.lease.hold()
    await RedisStorage(clients).grow("ada", 7, StorageQuota())
    workspaces.go.set()
    await turn
    assert (await RedisStorage(clients).of("ada")).bytes == 7


async def test_the_one_that_counts_alone_publishes_what_is_stored(
    clients: RedisClients, workspaces: SlowWorkspaces
) -> None:
    one, other = Controller(clients, workspaces, "one"), Controller(clients, workspaces, "other")
    workspaces.go.set()
    await one.counting.take_turn()
    assert STORED in one.published
    await one.lease.give_up()
    await other.counting.take_turn()
    await one.counting.take_turn()
    assert STORED in other.published
    assert "agent_workspace_stored_bytes" not in one.published


@pytest.mark.parametrize(("took", "pause"), [(0, 600), (60, 600), (61, 610), (7200, 72_000)])
def test_a_count_that_takes_long_is_made_less_often(took: float, pause: float) -> None:
    assert pause_seconds(600, took) == pause
