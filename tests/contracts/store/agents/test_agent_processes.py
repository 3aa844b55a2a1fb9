"""Where agents are placed: in processes that live, as many as each has room for."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from backplane.domain.agents import Agent
from backplane.domain.runs import Priority, RunError, RunStatus
from backplane.domain.users import User
from backplane.errors import NotFound
from backplane.store import Store
from backplane.store.agents.tables import agents
from backplane.store.tables import runs
from tests.agents import POOL, ended, sent, spawned, started_process


async def place_of(store: Store, agent: Agent) -> str | None:
    found = await store.agents.find(agent.id)
    return found.process_id if found else None


async def idle_since(store: Store, agent: Agent, seconds: float) -> None:
    past = datetime.now(UTC) - timedelta(seconds=seconds)
    statement = update(agents).where(agents.c.id == agent.id).values(last_active_at=past)
    await store.database.write(lambda connection: connection.execute(statement))


async def made_before(store: Store, agent: Agent, seconds: float) -> None:
    past = datetime.now(UTC) - timedelta(seconds=seconds)
    statement = update(agents).where(agents.c.id == agent.id).values(created_at=past)
    await store.database.write(lambda connection: connection.execute(statement))


async def waits_for(store: Store, run_id: str, seconds: float) -> None:
    past = datetime.now(UTC) - timedelta(seconds=seconds)
    statement = update(runs).where(runs.c.id == run_id).values(created_at=past, queued_at=past)
    await store.database.write(lambda connection: connection.execute(statement))


async def test_a_process_registers_renews_and_ends(store: Store) -> None:
    made = await started_process(store, "one", ranges="1-5", lease_seconds=15.0)
    assert (made.pool, made.ranges, made.lease_until - made.heartbeat_at) == (POOL, "1-5", timedelta(seconds=15))
    assert await store.agent_processes.find("one") == made
    renewal = await store.agent_processes.renew("one", 30.0)
    assert renewal is not None
    assert (renewal.agents, renewal.is_draining) == ((), False)
    [occupancy] = await store.agent_processes.all()
    assert occupancy.process.lease_until > made.lease_until
    await store.agent_processes.deregister("one")
    assert await store.agent_processes.renew("one", 30.0) is None
    assert await store.agent_processes.find("one") is None


async def test_a_process_needs_a_pool_that_is_there(store: Store) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        await started_process(store, "one", pool="nowhere")


async def test_a_renewal_answers_the_agents_of_the_process_by_number(store: Store, user: User) -> None:
    await started_process(store, "one")
    made = [await spawned(store, user, f"a{number}") for number in range(3)]
    renewal = await store.agent_processes.renew("one", 30.0)
    assert renewal is not None
    assert renewal.agents == tuple(agent.id for agent in made)
    assert [agent.id for agent in await store.agents.placed_in("one")] == list(renewal.agents)
    assert {(agent.process_id, agent.generation) for agent in made} == {("one", 1)}


async def test_a_process_whose_lease_is_over_loses_its_agents_and_its_row(store: Store, user: User) -> None:
    await started_process(store, "late", lease_seconds=-1.0)
    await started_process(store, "alive")
    agent = await spawned(store, user)
    assert agent.process_id == "alive"
    await store.agent_processes.renew("alive", -1.0)
    assert [process.id for process in await store.agent_processes.expire()] == ["alive", "late"]
    assert await place_of(store, agent) is None
    assert await store.agent_processes.expire() == []


async def test_a_draining_process_loses_its_agents_and_gets_none(store: Store, user: User) -> None:
    await started_process(store, "one")
    agent = await spawned(store, user)
    message = await sent(store, user, agent)
    await store.agent_processes.drain("one")
    assert await place_of(store, agent) is None
    renewal = await store.agent_processes.renew("one", 30.0)
    assert renewal is not None
    assert (renewal.agents, renewal.is_draining) == ((), True)
    assert await store.agent_processes.place_waiting(POOL) == []
    await started_process(store, "two")
    [placed] = await store.agent_processes.place_waiting(POOL)
    assert (placed.agent_id, placed.process_id, placed.opened) == (agent.id, "two", None)
    found = await store.agents.get(user.id, agent.id)
    assert (found.open_run_id, found.generation) == (message.run.id, 2)


async def test_agents_with_something_to_do_are_placed_most_urgent_first(store: Store, user: User) -> None:
    made = {}
    for name, priority in (("low", Priority.LOW), ("high", Priority.HIGH), ("normal", Priority.NORMAL)):
        made[name] = await spawned(store, user, name)
        await sent(store, user, made[name], priority=priority)
    await spawned(store, user, "idle")
    assert await counted(store) == (0, 4, 0, 4)
    await started_process(store, "one", capacity=2)
    placed = await store.agent_processes.place_waiting(POOL)
    assert [one.agent_id for one in placed] == [made["high"].id, made["normal"].id]
    assert await counted(store) == (2, 4, 2, 2)


async def counted(store: Store) -> tuple[int, int, int, int]:
    """Capacity, agents, placed, unplaced of the pool."""
    [counts] = [one for one in await store.agent_pools.counts() if one.pool.name == POOL]
    return counts.capacity, counts.agents, counts.placed, counts.unplaced


async def test_an_agent_that_has_nothing_to_do_is_not_placed(store: Store, user: User) -> None:
    agent, paused = await spawned(store, user), await spawned(store, user, "paused")
    await made_before(store, agent, 601)
    await store.agents.pause(user.id, paused.id)
    await sent(store, user, paused)
    await started_process(store, "one")
    assert await store.agent_processes.place(agent.id) is None
    assert await store.agent_processes.place(paused.id) is None
    assert await store.agent_processes.place("nobody") is None
    assert await store.agent_processes.place_waiting(POOL) == []


async def test_a_new_agent_gets_a_process_before_its_first_message_and_nobody_elses_place(
    store: Store, user: User
) -> None:
    await store.agent_pools.patch(POOL, {"max_processes": 1})
    await started_process(store, "one", capacity=1)
    first, second = await spawned(store, user, "first"), await spawned(store, user, "second")
    assert (await counted(store))[-1] == 1
    assert await store.agent_processes.place_waiting(POOL) == []
    assert await place_of(store, first) == "one"
    await store.agents.terminate(user.id, first.id)
    assert [one.agent_id for one in await store.agent_processes.place_waiting(POOL)] == [second.id]


async def test_agents_for_which_there_is_no_room_keep_none_behind_them_waiting(store: Store, user: User) -> None:
    await store.agent_pools.patch(POOL, {"max_processes": 2})
    await started_process(store, "a", node="a", ranges="1-2", capacity=1)
    made = [await spawned(store, user, f"a{number}") for number in range(4)]
    for agent, priority in zip(made, (Priority.HIGH, Priority.HIGH, Priority.HIGH, Priority.LOW), strict=True):
        await sent(store, user, agent, priority=priority)
    await started_process(store, "b", node="b", ranges="4-4", capacity=1)
    assert [one.agent_id for one in await store.agent_processes.place_waiting(POOL)] == [made[3].id]
    assert [await place_of(store, agent) for agent in made] == ["a", None, None, "b"]


async def test_an_agent_whose_turn_waits_is_placed_once_it_goes_on(store: Store, user: User) -> None:
    await started_process(store, "one")
    agent = await spawned(store, user)
    run = (await sent(store, user, agent)).run
    await store.running_runs.take(run.id, 1, "worker")
    await store.running_runs.write(run.id, 1, lambda write: write.wait_for_person(RunError("approval_required", "…")))
    await idle_since(store, agent, 700)
    assert await store.agent_processes.put_to_sleep(POOL) == [agent.id]
    assert await store.agent_processes.place_waiting(POOL) == []
    await store.runs.retry(user.id, run.id, uncertain_step_is_done=None)
    [placed] = await store.agent_processes.place_waiting(POOL)
    assert (placed.agent_id, placed.opened) == (agent.id, None)


async def test_idle_agents_sleep_after_the_time_of_their_pool(store: Store, user: User) -> None:
    await started_process(store, "one")
    idle, busy, fresh = [await spawned(store, user, name) for name in ("idle", "busy", "fresh")]
    await sent(store, user, busy)
    for agent in (idle, busy):
        await idle_since(store, agent, 601)
    assert await store.agent_processes.put_to_sleep(POOL) == [idle.id]
    assert [await place_of(store, agent) for agent in (idle, busy, fresh)] == [None, "one", "one"]
    assert await store.agent_processes.put_to_sleep("nowhere") == []


async def test_in_a_full_pool_the_longest_idle_agent_makes_room(store: Store, user: User) -> None:
    await store.agent_pools.patch(POOL, {"max_processes": 1})
    await started_process(store, "one", capacity=3)
    busy, idle, longest = [await spawned(store, user, name) for name in ("busy", "idle", "longest")]
    run = (await sent(store, user, busy)).run
    for agent, seconds in ((busy, 300), (idle, 100), (longest, 200)):
        await idle_since(store, agent, seconds)
    other = await spawned(store, user, "other")
    assert other.process_id is None
    added = await sent(store, user, other)
    assert added.placed is not None
    assert await place_of(store, longest) is None
    assert (added.placed.process_id, await place_of(store, idle), await place_of(store, busy)) == ("one", "one", "one")
    await store.running_runs.take(run.id, 1, "worker")
    await ended(store, busy, run.id)


async def test_a_pool_that_may_have_more_processes_takes_no_place_away(store: Store, user: User) -> None:
    await started_process(store, "one", capacity=1)
    first, second = await spawned(store, user, "first"), await spawned(store, user, "second")
    await sent(store, user, second)
    assert (await place_of(store, first), await place_of(store, second)) == ("one", None)
    assert (await counted(store))[-1] == 1


@pytest.mark.parametrize("is_open", [False, True])
async def test_where_no_process_comes_an_agent_with_work_takes_the_place_of_an_idle_one(
    store: Store, user: User, is_open: bool
) -> None:
    if is_open:
        await started_process(store, "lost", capacity=1)
    agent = await spawned(store, user, "with work")
    run = (await sent(store, user, agent)).run
    await started_process(store, "one", capacity=1)
    idle = await spawned(store, user, "idle")
    await store.agent_processes.deregister("lost")
    assert (await place_of(store, idle), await place_of(store, agent)) == ("one", None)
    assert await store.agent_processes.place_waiting(POOL) == []
    await waits_for(store, run.id, 3)
    [placed] = await store.agent_processes.place_waiting(POOL)
    assert (placed.agent_id, placed.process_id) == (agent.id, "one")
    assert await place_of(store, idle) is None


async def test_agents_are_placed_on_the_node_whose_range_has_their_number(store: Store, user: User) -> None:
    await started_process(store, "a", node="a", ranges="1-2,5-5")
    await started_process(store, "b", node="b", ranges="3-4")
    made = [await spawned(store, user, f"a{number}") for number in range(6)]
    assert [agent.process_id for agent in made] == ["a", "a", "b", "b", "a", None]


async def test_a_turn_that_sleeps_for_long_gives_its_agents_place_up(store: Store, user: User) -> None:
    await started_process(store, "one")
    agent = await spawned(store, user)
    run = (await sent(store, user, agent)).run
    await store.running_runs.take(run.id, 1, "worker")
    later = datetime.now(UTC) + timedelta(hours=1)
    await store.running_runs.write(run.id, 1, lambda write: write.sleep_until(later))
    await idle_since(store, agent, 700)
    assert await store.agent_processes.put_to_sleep(POOL) == [agent.id]
    assert await store.agent_processes.place_waiting(POOL) == []
    await store.running_runs.take(run.id, 2, "worker")
    await store.running_runs.write(run.id, 2, lambda write: write.sleep_until(datetime.now(UTC)))
    assert [one.agent_id for one in await store.agent_processes.place_waiting(POOL)] == [agent.id]
    assert (await store.runs.get(user.id, run.id)).status is RunStatus.QUEUED
