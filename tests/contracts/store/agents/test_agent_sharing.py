"""How agents that never come to rest share the places of a full pool."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from backplane.domain.agent_places import PLACE_FOR
from backplane.domain.agents import Agent
from backplane.domain.runs import Priority, Run
from backplane.domain.users import Tier, User
from backplane.store import Store
from backplane.store.agents import processes
from backplane.store.agents.tables import agents
from tests.agents import POOL, ended, sent, spawned, started_process
from tests.contracts.store.agents.test_agent_processes import idle_since, place_of, waits_for

LONG = PLACE_FOR.seconds + 1


@pytest.fixture
async def bob(store: Store) -> User:
    return (await store.users.create_token("bob", Tier.STANDARD))[0].user


async def full_pool(store: Store, places: int) -> None:
    """One process, which is the last one."""
    await store.agent_pools.patch(POOL, {"max_processes": 1})
    await started_process(store, "one", capacity=places)


async def placed_for(store: Store, agent: Agent, seconds: float) -> None:
    past = datetime.now(UTC) - timedelta(seconds=seconds)
    statement = update(agents).where(agents.c.id == agent.id).values(placed_at=past)
    await store.database.write(lambda connection: connection.execute(statement))


async def at_work(store: Store, user: User, name: str, *, for_seconds: float = LONG) -> tuple[Agent, Run]:
    """An agent with a place, a running turn and a message in its mailbox."""
    agent = await spawned(store, user, name)
    await placed_for(store, agent, for_seconds)
    run = (await sent(store, user, agent)).run
    await store.running_runs.take(run.id, 1, "worker")
    await sent(store, user, agent, "and more")
    return agent, run


async def waiting(store: Store, user: User, name: str, seconds: float = 1, **values: Any) -> Agent:
    """An agent that has had something to do for so long, and no place."""
    agent = await spawned(store, user, name)
    assert agent.process_id is None
    run = (await sent(store, user, agent, **values)).run
    await waits_for(store, run.id, seconds)
    await idle_since(store, agent, seconds)
    return agent


async def names_placed(store: Store) -> list[str]:
    return [agent.name for agent in await store.agents.placed_in("one")]


async def test_an_agent_whose_mailbox_is_never_empty_gives_its_place_between_two_turns(
    store: Store, user: User, bob: User
) -> None:
    await full_pool(store, 1)
    ada, run = await at_work(store, user, "ada")
    other = await waiting(store, bob, "other")
    assert await store.agent_processes.place_waiting(POOL) == []  # the turn goes on
    await ended(store, ada, run.id)
    left = await store.agents.get(user.id, ada.id)
    assert (left.process_id, left.open_run_id, await store.agents.mailbox_size(ada.id)) == (None, None, 1)
    [placed] = await store.agent_processes.place_waiting(POOL)
    assert (placed.agent_id, placed.opened is not None) == (other.id, True)


async def test_an_agent_that_was_placed_a_moment_ago_keeps_its_place(store: Store, user: User, bob: User) -> None:
    await full_pool(store, 1)
    ada, run = await at_work(store, user, "ada", for_seconds=LONG - 5)
    await waiting(store, bob, "other")
    await ended(store, ada, run.id)
    left = await store.agents.get(user.id, ada.id)
    assert (left.process_id, left.open_run_id is not None) == ("one", True)


async def test_an_agent_keeps_its_place_where_nobody_waits_for_one(store: Store, user: User) -> None:
    await full_pool(store, 1)
    ada, run = await at_work(store, user, "ada")
    await spawned(store, user, "new")
    await ended(store, ada, run.id)
    assert await place_of(store, ada) == "one"


async def test_an_agent_keeps_its_place_while_there_is_a_free_one(store: Store, user: User, bob: User) -> None:
    await full_pool(store, 1)
    ada, run = await at_work(store, user, "ada")
    await waiting(store, bob, "other")
    await started_process(store, "two")
    await ended(store, ada, run.id)
    assert await place_of(store, ada) == "one"


async def test_an_agent_that_has_given_its_place_takes_none_that_others_wait_for(
    store: Store, user: User, bob: User
) -> None:
    await full_pool(store, 1)
    ada, run = await at_work(store, user, "ada")
    other = await waiting(store, bob, "other")
    await ended(store, ada, run.id)
    assert await store.agent_processes.place(ada.id) is None
    added = await sent(store, user, ada, priority=Priority.CRITICAL)
    assert added.placed is None
    assert [one.agent_id for one in await store.agent_processes.place_waiting(POOL)] == [other.id]
    await store.agents.terminate(bob.id, other.id)
    assert await store.agent_processes.place(ada.id) is not None


async def test_the_agent_that_was_placed_first_gives_its_place_first(store: Store, user: User) -> None:
    await full_pool(store, 2)
    ada, of_ada = await at_work(store, user, "ada", for_seconds=LONG)
    eve, of_eve = await at_work(store, user, "eve", for_seconds=2 * LONG)
    await waiting(store, user, "other")
    await ended(store, ada, of_ada.id)
    assert await place_of(store, ada) == "one"
    await ended(store, eve, of_eve.id)
    assert await place_of(store, eve) is None


async def test_an_agent_does_not_wait_for_ever_for_the_long_turn_of_the_one_that_was_placed_first(
    store: Store, user: User
) -> None:
    await full_pool(store, 2)
    ada, run = await at_work(store, user, "ada", for_seconds=LONG)
    await at_work(store, user, "eve", for_seconds=2 * LONG)
    await waiting(store, user, "other", 2 * LONG)
    await ended(store, ada, run.id)
    assert await place_of(store, ada) is None


async def test_an_agent_keeps_its_place_where_those_that_wait_are_of_users_with_as_many(
    store: Store, user: User, bob: User
) -> None:
    await full_pool(store, 2)
    ada, of_ada = await at_work(store, user, "ada")
    bobs, of_bobs = await at_work(store, bob, "bobs")
    await waiting(store, bob, "bobs second")
    await ended(store, ada, of_ada.id)
    assert await place_of(store, ada) == "one"
    await ended(store, bobs, of_bobs.id)
    assert await place_of(store, bobs) is None


async def test_free_places_go_to_users_by_turns_however_many_agents_one_of_them_has(
    store: Store, user: User, bob: User
) -> None:
    for number in range(4):
        await waiting(store, user, f"a{number}", 60 - number)
    await waiting(store, bob, "b0", 40)
    await full_pool(store, 2)
    await store.agent_processes.place_waiting(POOL)
    assert sorted(await names_placed(store)) == ["a0", "b0"]


@pytest.mark.parametrize(("seconds", "first"), [(LONG - 5, "urgent"), (LONG, "late")])
async def test_an_agent_that_has_waited_for_long_comes_before_those_that_are_more_urgent(
    store: Store, user: User, seconds: float, first: str
) -> None:
    await waiting(store, user, "late", seconds, priority=Priority.LOW)
    await waiting(store, user, "urgent", 1, priority=Priority.CRITICAL)
    await full_pool(store, 1)
    await store.agent_processes.place_waiting(POOL)
    assert await names_placed(store) == [first]


async def test_an_agent_that_gets_messages_while_it_waits_does_not_begin_to_wait_anew(store: Store, user: User) -> None:
    late = await waiting(store, user, "late", 20)
    await waiting(store, user, "later", 10)
    await sent(store, user, late, "one more")
    await full_pool(store, 1)
    await store.agent_processes.place_waiting(POOL)
    assert await names_placed(store) == ["late"]


@pytest.mark.parametrize("ranges", ["9-9", None])
async def test_agents_that_no_process_may_take_keep_none_behind_them_waiting(
    store: Store, user: User, monkeypatch: pytest.MonkeyPatch, ranges: str | None
) -> None:
    """However many there are: as many as are looked at."""
    monkeypatch.setattr(processes, "LOOKED_AT", 3)
    for number in range(8):
        await waiting(store, user, f"a{number}", 60, priority=Priority.CRITICAL)
    await waiting(store, user, "a8", 1, priority=Priority.LOW)
    await started_process(store, "full", node="a", ranges="1-3", capacity=1)
    await store.agent_processes.place_waiting(POOL)
    await store.agent_pools.patch(POOL, {"max_processes": 2})
    await started_process(store, "one", node="b", ranges="9-9" if ranges else "4-9", capacity=1 if ranges else 6)
    await store.agent_processes.place_waiting(POOL)
    if ranges is None:
        await store.agent_processes.place_waiting(POOL)
    assert "a8" in await names_placed(store)
