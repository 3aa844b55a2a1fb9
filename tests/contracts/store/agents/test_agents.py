"""Agents and pools: who they are, and where they are placed."""

import pytest

from backplane.domain.agents import Pool
from backplane.domain.users import User
from backplane.errors import AgentTerminated, Conflict, NotFound, TooLarge
from backplane.store import Store
from tests.agents import POOL, spawned, started_process

EVERY_POOL = ["business_analyst_pool", "developer_pool", "team_leader_pool", "tester_pool"]


async def test_there_is_a_pool_for_each_role_that_comes_along(store: Store) -> None:
    pools = await store.agent_pools.list_all()
    assert [pool.name for pool in pools] == EVERY_POOL
    assert {(pool.agents_per_process, pool.max_processes, pool.sleep_after_seconds) for pool in pools} == {(10, 4, 600)}


async def test_a_pool_is_made_changed_and_deleted(store: Store) -> None:
    made, is_new = await store.agent_pools.put(
        Pool("writers", "writer", (await store.agent_pools.get(POOL)).created_at)
    )
    assert (is_new, made.role, made.agents_per_process) == (True, "writer", 10)
    assert await store.agent_pools.put(made) == (made, False)
    changed = await store.agent_pools.patch("writers", {"agents_per_process": 3})
    assert (changed.agents_per_process, changed.role) == (3, "writer")
    await store.agent_pools.delete("writers")
    for act in (store.agent_pools.get, store.agent_pools.delete):
        with pytest.raises(NotFound):
            await act("writers")
    with pytest.raises(NotFound):
        await store.agent_pools.patch("writers", {"agents_per_process": 3})


async def test_a_pool_with_agents_or_processes_is_not_deleted(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    with pytest.raises(Conflict, match="1 agents"):
        await store.agent_pools.delete(POOL)
    await store.agents.terminate(user.id, agent.id)
    await store.agents.delete(user.id, agent.id)
    await started_process(store, "one")
    with pytest.raises(Conflict, match="processes"):
        await store.agent_pools.delete(POOL)
    await store.agent_processes.deregister("one")
    await store.agent_pools.delete(POOL)


async def test_the_same_name_again_answers_the_same_agent(store: Store, user: User, stranger: User) -> None:
    first, is_new = await store.agents.spawn(user.id, POOL, "ada", most=10)
    again, again_new = await store.agents.spawn(user.id, POOL, "ada", most=10)
    assert (is_new, again_new, again) == (True, False, first)
    others, _ = await store.agents.spawn(stranger.id, POOL, "ada", most=10)
    elsewhere, _ = await store.agents.spawn(user.id, "tester_pool", "ada", most=10)
    assert len({first.id, others.id, elsewhere.id}) == 3
    assert [one.id for one in await store.agents.named(user.id, "ada")] == [first.id, elsewhere.id]


async def test_an_agent_needs_a_pool_that_is_there(store: Store, user: User) -> None:
    with pytest.raises(NotFound, match="agents/pools"):
        await store.agents.spawn(user.id, "nowhere", "ada", most=10)


async def test_a_user_has_so_many_agents_at_most(store: Store, user: User) -> None:
    first = await spawned(store, user, "one")
    await spawned(store, user, "two")
    with pytest.raises(TooLarge, match="2 may be"):
        await store.agents.spawn(user.id, POOL, "three", most=2)
    await store.agents.terminate(user.id, first.id)
    with pytest.raises(TooLarge, match="delete some"):
        await store.agents.spawn(user.id, POOL, "three", most=2)
    await store.agents.delete(user.id, first.id)
    assert (await store.agents.spawn(user.id, POOL, "three", most=2))[1]


async def test_the_lowest_free_number_of_the_pool_is_given(store: Store, user: User, stranger: User) -> None:
    agents = [await spawned(store, one, f"a{number}") for number, one in enumerate([user, stranger, user, user])]
    assert [agent.number for agent in agents] == [1, 2, 3, 4]
    for gone in (agents[2], agents[0]):
        await store.agents.terminate(gone.user_id, gone.id)
    assert [(await spawned(store, user, name)).number for name in ("x", "y", "z")] == [1, 3, 5]


async def test_another_users_agent_is_not_there(store: Store, user: User, stranger: User) -> None:
    agent = await spawned(store, user)
    assert await store.agents.get(user.id, agent.id) == agent == await store.agents.find(agent.id)
    acts = [
        store.agents.get(stranger.id, agent.id),
        store.agents.patch(stranger.id, agent.id, {"model": "m"}),
        store.agents.state(stranger.id, agent.id),
        store.agents.put_state(stranger.id, agent.id, {}),
        store.agents.pause(stranger.id, agent.id),
        store.agents.resume(stranger.id, agent.id),
        store.agents.terminate(stranger.id, agent.id),
        store.agents.delete(stranger.id, agent.id),
    ]
    for act in acts:
        with pytest.raises(NotFound):
            await act


async def test_pages_show_a_users_agents_oldest_first(store: Store, user: User, stranger: User) -> None:
    agents = [await spawned(store, user, f"a{number}") for number in range(4)]
    await spawned(store, stranger)
    await store.agents.terminate(user.id, agents[1].id)
    first = await store.agents.page(user.id, limit=2)
    assert [one.id for one in first] == [agents[0].id, agents[2].id]
    assert [one.id for one in await store.agents.page(user.id, after=first[-1].id)] == [agents[3].id]
    assert len(await store.agents.page(user.id, terminated=True)) == 4
    assert await store.agents.page(user.id, pool="tester_pool") == []


# --- state ---


async def test_a_state_is_replaced_by_the_version_that_was_read(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    assert (await store.agents.state(user.id, agent.id)).version == 0
    written = await store.agents.put_state(user.id, agent.id, {"count": 1}, 0)
    assert (written.value, written.version) == ({"count": 1}, 1)
    with pytest.raises(Conflict, match="version 1"):
        await store.agents.put_state(user.id, agent.id, {"count": 9}, 0)
    assert (await store.agents.put_state(user.id, agent.id, {"count": 2})).version == 2
    assert await store.agents.state(user.id, agent.id) == await store.agents.state(user.id, agent.id)


# --- the end of an agent ---


async def test_a_terminated_agent_stays_readable_and_takes_no_change(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    ended = await store.agents.terminate(user.id, agent.id)
    assert ended.terminated_at is not None
    assert await store.agents.terminate(user.id, agent.id) == ended == await store.agents.get(user.id, agent.id)
    acts = [
        store.agents.patch(user.id, agent.id, {"model": "m"}),
        store.agents.put_state(user.id, agent.id, {}),
        store.agents.pause(user.id, agent.id),
        store.agents.resume(user.id, agent.id),
    ]
    for act in acts:
        with pytest.raises(AgentTerminated):
            await act
    again = await spawned(store, user, agent.name)
    assert again.id != agent.id
    await store.agents.delete(user.id, agent.id)
    with pytest.raises(NotFound):
        await store.agents.get(user.id, agent.id)


async def test_a_living_agent_is_not_deleted(store: Store, user: User) -> None:
    agent = await spawned(store, user)
    with pytest.raises(Conflict, match="terminate"):
        await store.agents.delete(user.id, agent.id)
