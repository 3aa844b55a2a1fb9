"""Redis as its adapters get it: one server, and in the long suite a cluster too, where a script that touched two slots
would be refused."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backplane.redis.client import RedisClients
from tests.conftest import started
from tests.redis_servers import Cluster

PREFIX = "{agents}:"


@pytest.fixture(scope="session")
def cluster(servers_folder: Path) -> Iterator[Cluster]:
    with started(lambda: Cluster(servers_folder / "cluster", PREFIX)) as cluster:
        yield cluster


@pytest.fixture(params=["one server", pytest.param("cluster", marks=pytest.mark.slow)])
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[RedisClients]:
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.flush()
        made = RedisClients(cluster.url(), prefix=PREFIX)
    else:
        made = RedisClients(request.getfixturevalue("redis"))
    yield made
    await made.close()
