"""Redis as its adapters get it."""

from collections.abc import AsyncIterator

import pytest

from backplane.redis_client import RedisClients


@pytest.fixture
async def clients(redis: str) -> AsyncIterator[RedisClients]:
    made = RedisClients(redis)
    yield made
    await made.close()
