"""Agents and messages that are made at once, by two processes."""

import asyncio

from backplane.domain.agents import message_to
from backplane.domain.users import User
from backplane.errors import InvalidInput
from backplane.store import Store
from tests.agents import POOL, placed_agent, sent, spawned, started_process
from tests.contracts.store.test_agent_events import event
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


async def test_processes_that_start_at_once_note_what_their_role_listens_to(
    store: Store, second_store: Store, user: User
) -> None:
    stores = (store, second_store)
    for role in ("developer", "tester", "business_analyst", "team_leader"):
        await asyncio.gather(*(stores[number % 2].agent_events.listen(role, ["order.*"]) for number in range(10)))
    await spawned(store, user)
    await store.bus.publish(user.id, [event(1)])
    [due] = await store.agent_events.due(10)
    assert due.patterns == ("order.*",)


async def test_controllers_that_pass_the_same_events_at_once_note_the_last_one(
    store: Store, second_store: Store, user: User
) -> None:
    stores = (store, second_store)
    await store.agent_events.listen("developer", ["order.*"])
    await store.bus.publish(user.id, [event(number) for number in range(1, 11)])
    for name in ("one", "two", "three"):
        agent = await spawned(store, user, name)
        await asyncio.gather(*(stores[cursor % 2].agent_events.passed(agent.id, cursor) for cursor in range(1, 11)))
    assert await store.agent_events.due(10) == []


async def test_changes_of_a_pool_at_once_leave_no_more_at_least_than_at_most(store: Store, second_store: Store) -> None:
    for _ in range(5):
        await store.agent_pools.patch(POOL, {"min_processes": 0, "max_processes": 4})
        ended = await asyncio.gather(
            store.agent_pools.patch(POOL, {"min_processes": 3}),
            second_store.agent_pools.patch(POOL, {"max_processes": 2}),
            return_exceptions=True,
        )
        assert sum(isinstance(one, InvalidInput) for one in ended) == 1, ended
        pool = await store.agent_pools.get(POOL)
        assert pool.min_processes <= pool.max_processes
