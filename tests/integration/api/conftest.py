"""The API as a running server, and people who use it: a new one for each test."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.main import create_app
from backplane.settings import Settings
from tests.integration.api.running import (
    Api,
    Person,
    StartApi,
    StartWorker,
    api_starter,
    settings_on,
    worker_starter,
)


@pytest.fixture(scope="module")
def described() -> Any:
    """What the API says of itself."""
    return create_app(Settings.model_validate({})).openapi()


@pytest.fixture
def settings_with(tmp_path: Path, request: pytest.FixtureRequest, sqlite_database: str) -> Callable[..., Settings]:
    """Settings on an empty Redis, SQLite and a folder, with what the test says."""

    def made(**values: Any) -> Settings:
        if "redis_url" not in values:
            values["redis_url"] = request.getfixturevalue("redis")
        return settings_on(tmp_path, **{"database_url": sqlite_database, **values})

    return made


@pytest.fixture
async def start_api(settings_with: Callable[..., Settings]) -> AsyncIterator[StartApi]:
    async with api_starter(settings_with) as start:
        yield start


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    return await start_api()


@pytest.fixture
async def person(api: Api) -> Person:
    return await api.person()


@pytest.fixture
async def start_worker() -> AsyncIterator[StartWorker]:
    async with worker_starter() as start:
        yield start
