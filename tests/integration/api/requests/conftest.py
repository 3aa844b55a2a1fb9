"""One API for all tests of a file, for those that leave nothing behind but their own users' runs. Redis is emptied
before each test, so no queue holds what another test has left.

Tests and fixtures here must all run in the loop of their module, in which that API runs: `loop_scope="module"`.
"""

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from backplane.sealing import new_key
from backplane.settings import Settings
from tests.integration.api.running import (
    Api,
    Person,
    StartApi,
    StartWorker,
    api_starter,
    running,
    settings_on,
    worker_starter,
)


@pytest.fixture(autouse=True)
def empty_redis(redis: str) -> None:
    pass


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(
    redis_of_module: str, sqlite_of_module: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    async with running(settings_on(folder, redis_url=redis_of_module, database_url=sqlite_of_module)) as api:
        yield api


@pytest_asyncio.fixture(loop_scope="module")
async def person(api: Api) -> Person:
    return await api.person()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keeping(
    redis_of_module: str, sqlite_of_module: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    """An API that keeps secrets."""
    folder = tmp_path_factory.mktemp("api")
    places = {"redis_url": redis_of_module, "database_url": sqlite_of_module}
    async with running(settings_on(folder, secrets_key=new_key(), **places)) as api:
        yield api


@pytest_asyncio.fixture(loop_scope="module")
async def ada(keeping: Api) -> Person:
    return await keeping.person()


@pytest_asyncio.fixture(loop_scope="module")
async def start_api(settings_with: Callable[..., Settings]) -> AsyncIterator[StartApi]:
    async with api_starter(settings_with) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def start_worker() -> AsyncIterator[StartWorker]:
    async with worker_starter() as start:
        yield start
