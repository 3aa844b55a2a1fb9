"""How many runs and events users have."""

from backplane.domain.stored import Stored
from backplane.domain.users import User
from backplane.store import Store
from tests.submitted import new_run


async def test_runs_and_events_are_counted_by_user(store: Store, user: User, stranger: User) -> None:
    assert await store.usage_counts.of_users() == {}
    for _ in range(2):
        await store.runs.create(new_run(user), start=True)
    await store.runs.create(new_run(stranger))
    assert await store.usage_counts.of_users() == {user.id: Stored(runs=2, events=4), stranger.id: Stored(1, 1)}
