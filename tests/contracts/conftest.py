"""Redis as its adapters get it: one server, a REST API before it for what the API uses, and in the long suite a cluster
too, where a script that touched two slots would be refused."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from backplane.redis.client import RedisClients
from backplane.redis.rest import RestClients
from tests.conftest import started
from tests.redis_servers import Cluster
from tests.rest_front import TOKEN, rest_front

PREFIX = "{agents}:"
BY_REST = {
    "test_agent_queues",
    "test_agent_registry",
    "test_event_log",
    "test_named_queues",
    "test_queue",
    "test_queue_caps",
    "test_queue_depths",
    "test_queue_owner",
    "test_rates",
    "test_redis_clients",
    "test_storage",
    "test_tool_catalogue",
}
"""What the API does with Redis. Leases, slots, token buckets and repair are of the others, and so is what is marked
`connection`."""


@pytest.fixture(scope="session")
def cluster(servers_folder: Path) -> Iterator[Cluster]:
    with started(lambda: Cluster(servers_folder / "cluster", PREFIX)) as cluster:
        yield cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "clients" not in metafunc.fixturenames:
        return
    ways: list[Any] = ["one server", pytest.param("cluster", marks=pytest.mark.slow)]
    module = metafunc.module.__name__.rpartition(".")[2]
    if module in BY_REST and not metafunc.definition.get_closest_marker("connection"):
        ways.append("rest")
    metafunc.parametrize("clients", ways, indirect=True)


@pytest.fixture
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[RedisClients]:
    async with AsyncExitStack() as stack:
        if request.param == "cluster":
            cluster: Cluster = request.getfixturevalue("cluster")
            cluster.flush()
            made = RedisClients(cluster.url(), prefix=PREFIX)
        elif request.param == "rest":
            front = await stack.enter_async_context(rest_front(request.getfixturevalue("redis")))
            made = RestClients(front.url, TOKEN)
        else:
            made = RedisClients(request.getfixturevalue("redis"))
        stack.push_async_callback(made.close)
        yield made
