"""An administrator beside the user of the store."""

import pytest

from backplane.domain.users import Tier, User
from backplane.store import Store


@pytest.fixture
async def admin(store: Store) -> User:
    token, _ = await store.users.create_token("root", Tier.ADMIN)
    return token.user
