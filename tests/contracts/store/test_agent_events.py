"""What roles listen to, and how far each agent is, on each database."""

from typing import Any

from backplane.domain.bus import cloud_event
from backplane.domain.users import User
from backplane.store import Store
from tests.agents import spawned


def event(number: int, type: str = "order.made") -> Any:
    return cloud_event({"specversion": "1.0", "id": str(number), "source": "/shop", "type": type, "data": number})


async def due(store: Store) -> list[tuple[str, int]]:
    return [(one.agent.name, one.cursor) for one in await store.agent_events.due(10)]


async def test_an_agent_gets_the_events_after_it_was_made_and_its_role_began_to_listen(
    store: Store, user: User, stranger: User
) -> None:
    await spawned(store, user)
    await spawned(store, stranger, "eve")
    await store.bus.publish(user.id, [event(1)])
    assert (await store.agent_events.newest(), await due(store)) == (None, [])
    await store.agent_events.listen("developer", ["order.*"])
    await store.bus.publish(user.id, [event(2), event(3)])
    await spawned(store, user, "late")
    assert await store.agent_events.newest() == 3
    assert await due(store) == [("ada", 1), ("late", 3)]
    [one, _] = await store.agent_events.due(10)
    assert one.patterns == ("order.*",)


async def test_an_agent_that_has_its_events_is_due_when_there_are_more(store: Store, user: User) -> None:
    await store.agent_events.listen("developer", ["order.*"])
    ada = await spawned(store, user)
    await store.bus.publish(user.id, [event(1), event(2)])
    await store.agent_events.passed(ada.id, 2)
    assert await due(store) == []
    await store.bus.publish(user.id, [event(3)])
    await store.agent_events.passed(ada.id, 1)  # another controller, which is late
    assert await due(store) == [("ada", 2)]
    await store.agent_events.passed(ada.id, 2, pause_seconds=60.0)
    assert await due(store) == []


async def test_a_role_that_listens_no_more_has_no_events_and_the_same_again_changes_nothing(
    store: Store, user: User
) -> None:
    await store.agent_events.listen("developer", ["order.*"])
    ada = await spawned(store, user)
    await store.bus.publish(user.id, [event(1)])
    await store.agent_events.listen("developer", ["order.*"])
    assert await due(store) == [("ada", 0)]
    await store.agent_events.listen("developer", [])
    assert (await store.agent_events.newest(), await due(store)) == (None, [])
    await store.agents.terminate(user.id, ada.id)
    await store.agent_events.listen("developer", ["*"])
    assert await due(store) == []
    await store.agent_events.passed("gone", 1)
