"""The store on each database, with a user in it."""

from collections.abc import AsyncIterator

import pytest

from backplane.domain.users import Tier, User
from backplane.store import Store
from backplane.store.database import Database


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    database = Database(database_url)
    yield Store(database)
    await database.close()


@pytest.fixture
async def second_store(store: Store, database_url: str) -> AsyncIterator[Store]:
    """The same database, as another process sees it."""
    database = Database(database_url)
    yield Store(database)
    await database.close()


@pytest.fixture
async def user(store: Store) -> User:
    token, _ = await store.users.create_token("ada", Tier.STANDARD)
    return token.user


@pytest.fixture
async def stranger(store: Store) -> User:
    token, _ = await store.users.create_token("eve", Tier.STANDARD)
    return token.user
