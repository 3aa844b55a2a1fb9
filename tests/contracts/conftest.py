"""Redis as its adapters get it: one server, and in the long suite a cluster too, where a script that touched two slots
would be refused."""

import inspect
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from backplane.redis_client import RedisClients
from tests.conftest import started
from tests.redis_servers import Cluster

PREFIX = "{agents}:"
NAMES_A_KEY = re.compile(r"\bKEYS\b|\bKeys\(\)|\bjobs:|_is_heard")


@pytest.fixture(scope="session")
def cluster(servers_folder: Path) -> Iterator[Cluster]:
    with started(lambda: Cluster(servers_folder / "cluster", PREFIX)) as cluster:
        yield cluster


@pytest.fixture(params=["one server", pytest.param("cluster", marks=pytest.mark.slow)])
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[RedisClients]:
    if request.param == "cluster":
        if NAMES_A_KEY.search(inspect.getsource(request.function)):
            pytest.skip("looks into keys by their names without a prefix")
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.flush()
        made = RedisClients(cluster.url(), prefix=PREFIX)
    else:
        made = RedisClients(request.getfixturevalue("redis"))
    yield made
    await made.close()
