"""Agents and messages that are made at once, by two processes."""

import asyncio

from backplane.domain.agents import message_to
from backplane.domain.users import User
from backplane.store import Store
from tests.agents import POOL, placed_agent, sent, spawned, started_process
from tests.submitted import new_run


async def test_ten_spawns_at_once_with_one_name_make_one_agent(store: Store, second_store: Store, user: User) -> None:
    stores = (store, second_store)
    made = await asyncio.gather(
        *(stores[number % 2].agents.spawn(user.id, POOL, "ada", most=10) for number in range(10))
    )
    assert len({agent.id for agent, _ in made}) == 1
    assert [is_new for _, is_new in made].count(True) == 1


async def test_twenty_spawns_at_once_get_twenty_numbers_and_no_process_too_many(
    store: Store, second_store: Store, user: User
) -> None:
    await started_process(store, "one", capacity=3)
    await started_process(store, "two", capacity=4)
    stores = (store, second_store)
    made = await asyncio.gather(*(spawned(stores[number % 2], user, f"a{number}") for number in range(20)))
    assert sorted(agent.number for agent in made) == list(range(1, 21))
    places = [agent.process_id for agent in made]
    assert (places.count("one"), places.count("two"), places.count(None)) == (3, 4, 13)


async def test_messages_that_come_at_once_get_each_number_once_and_one_of_them_is_open(
    store: Store, second_store: Store, user: User
) -> None:
    agent = await placed_agent(store, user)
    stores = (store, second_store)
    added = await asyncio.gather(*(sent(stores[number % 2], user, agent) for number in range(20)))
    assert sorted(one.run.turn or 0 for one in added) == list(range(1, 21))
    assert [one.run.turn for one in added if one.opened] == [1]
    assert len(await store.agents.mailbox(agent.id)) == 19


async def test_one_key_at_once_makes_one_message(store: Store, second_store: Store, user: User) -> None:
    agent = await placed_agent(store, user)
    stores = (store, second_store)
    added = await asyncio.gather(
        *(
            stores[number % 2].agent_messages.add(
                message_to(agent, new_run(user)), mailbox_max=10, idempotency=("key", "digest")
            )
            for number in range(10)
        )
    )
    assert len({one.run.id for one in added}) == 1
    assert [one.is_new for one in added].count(True) == 1
